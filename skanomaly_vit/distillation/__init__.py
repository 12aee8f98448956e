"""Images to the discrepancy between a frozen teacher's blocks and their students."""

from skanomaly_vit.distillation._distillation import BlockDistillation

__all__ = ["BlockDistillation"]
