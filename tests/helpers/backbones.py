"""Tiny networks of real timm families, with random weights: no network, no waiting."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

_SMALL = {"depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 0}

#: family -> (timm name, input size): what a block looks like differs between them.
FAMILIES = {
    "class token": ("vit_tiny_patch16_224", 32),
    "register tokens": ("vit_small_patch14_reg4_dinov2", 28),
    "no class token": ("vit_base_patch16_siglip_224", 32),
    "rotary embeddings (EVA-02)": ("eva02_tiny_patch14_224", 28),
    "rotary embeddings (DINOv3)": ("vit_small_patch16_dinov3", 32),
    "relative position bias (BEiT)": ("beit_base_patch16_224", 32),
    "shared relative position bias (relpos)": ("vit_relpos_small_patch16_224", 32),
    "distillation token (DeiT)": ("deit_tiny_distilled_patch16_224", 32),
}


def family(name: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A three-block network of a family, its weights spread so that every block matters."""
    timm_name, size = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(timm_name, img_size=size, **_SMALL | changes)
        for parameter in model.blocks.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _tiny(dtype: torch.dtype, img_size: tuple[int, int] | int | None) -> VisionTransformer:
    size = img_size or 8
    model = VisionTransformer(
        img_size=size, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0
    )
    model.pretrained_cfg = model.default_cfg = {
        "input_size": (3, 8, 8),
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }
    return model.to(dtype)


@register_model
def skanomaly_tiny(pretrained: bool = False, img_size=None, **ignored) -> VisionTransformer:
    """Two blocks by name, for tests that need no particular weights."""
    return _tiny(torch.float32, img_size)


@register_model
def skanomaly_tiny_double(pretrained: bool = False, img_size=None, **ignored) -> VisionTransformer:
    """The same in float64: rounding far below the tolerance of scikit-learn's checks."""
    return _tiny(torch.float64, img_size)
