"""The discrepancy space: students that imitate the blocks of a frozen teacher."""

from skanomaly_vit.distillation._block_student import BlockStudent
from skanomaly_vit.distillation._distillation import BlockDistillation
from skanomaly_vit.distillation._ridge_student import RidgeStudent

__all__ = ["BlockDistillation", "BlockStudent", "RidgeStudent"]
