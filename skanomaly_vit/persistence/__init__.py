"""Model files: fitted detectors that run no code when loaded.

`TransformalyDetector.save` writes one and `TransformalyDetector.load` reads it;
docs/how_to/saving.md tells how, and what is in a file.
"""

from skanomaly_vit.persistence._card import model_card

__all__ = ["model_card"]
