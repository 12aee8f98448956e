"""Model files: fitted detectors that run no code when loaded.

`TransformalyDetector.save` writes them, `TransformalyDetector.load` reads them.
docs/how_to/saving.md describes both, and the file format.
"""

from skanomaly_vit.persistence._card import model_card

__all__ = ["model_card"]
