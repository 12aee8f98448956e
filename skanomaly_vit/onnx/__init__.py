"""Detectors that score without torch: one ONNX file, and what reads it.

`export_onnx` writes a fitted `TransformalyDetector` as one graph, `OnnxDetector` scores images with
it through ONNX Runtime. Needs ``pip install 'skanomaly-vit[onnx]'``; docs/how_to/onnx.md tells what
a graph takes and gives, how to call it from other languages, and what it costs.
"""

from skanomaly_vit.onnx._detector import OnnxDetector, export_onnx

__all__ = ["OnnxDetector", "export_onnx"]
