"""ONNX export, and a detector that scores without torch.

`export_onnx` writes a fitted `TransformalyDetector` as one graph. `OnnxDetector` scores images with
it through ONNX Runtime. Both need ``pip install 'skanomaly-vit[onnx]'``. docs/how_to/onnx.md
describes inputs and outputs of a graph, calls from other languages, and speed.
"""

from skanomaly_vit.onnx._detector import OnnxDetector
from skanomaly_vit.onnx._exporting import export_onnx

__all__ = ["OnnxDetector", "export_onnx"]
