"""The names train.py and report.py use of architectures, forward pass and captioner."""

from __future__ import annotations

import torch
from torch import nn

from lib.reference import architectures, forward
from lib.reference.architectures import (
    BOS,
    EOS,
    NORM,
    PAD,
    PLACES,
    SIZES,
    Size,
    blindfold_encoder,
    place_waves,
)
from lib.reference.captioner import Captioner
from lib.reference.forward import image_embeddings

__all__ = [
    "BOS", "EOS", "NORM", "PAD", "PLACES", "SIZES", "Captioner", "Size", "blindfold_encoder", "build",
    "image_embeddings", "is_backbone_blind", "layout", "place_waves",
]  # fmt: skip
BLIND = {None: None, "backbone": "vision_only", "encoder": "backbone_only"}


def build(size: Size, seed: int, blind: str | None = None, places: str = "random") -> nn.Module:
    """`architectures.build` under its first name: siglip_llama alone. blind: None, "backbone" or "encoder"."""
    return architectures.build(size, seed, planted=BLIND[blind], places=places)


def is_backbone_blind(config) -> bool:
    return (getattr(config, "dual_mechanisms", None) or {}).get("image_positions") == "shared"


def layout(context: int, prefix: int, blocks: torch.Tensor, blind: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`forward.layout` under its first name: positions [batch, tokens] and additive mask [batch, 1, tokens, tokens]."""
    known = forward.text_context(context)
    if blind:
        seen = known.seen.clone()
        seen[prefix:, prefix:] = torch.eye(context - prefix, dtype=torch.bool)
        positions = known.positions.clamp(max=prefix)
        known = forward.Context(positions, seen, int(positions[0, -1]) + 1)
    positions, seen = forward.layout(known, blocks)
    return positions[0], forward.additive(seen)
