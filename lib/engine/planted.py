"""What the configuration of a planted model asks the adapter to set (floor 2): positions and masks of image tokens in
the backbone, positions of patches in the encoder.

Marks under `dual_mechanisms`: image_positions, a scheme of lib/engine/positions.py ("shared": all image tokens stand
where the first stands; "rows": those of a row stand where its first stands); image_attention "self" (no image token
sees another) or "rows" (it sees all of its own row and of the rows before); image_places "background" (only patches
that are all white get a position embedding).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

WHITE = 0.999  # pixels are in -1..1
BUILT_IN = ("image_positions", "image_attention", "image_places")  # marks that change what transformers would run


def marks(config) -> dict:
    """What a model's configuration says under `dual_mechanisms`, {} for all others."""
    return dict(getattr(config, "dual_mechanisms", None) or {})


def sees_rows(
    seen: Bool[Tensor, "batch query key"], image: Int[Tensor, "batch image_token"], side: int
) -> Bool[Tensor, "batch query key"]:
    """A causal mask in which image tokens of a picture see all of their own row (of earlier rows they do already)."""
    row = torch.full(seen.shape[:2], -1, device=seen.device)
    number = torch.arange(image.shape[1], device=seen.device) // side
    row = row.scatter(1, image, number.expand(len(image), -1))
    return seen | ((row[:, :, None] == row[:, None, :]) & (row[:, :, None] >= 0))


def no_places_under_objects(marks: dict, base, pixels: Tensor) -> list:
    """Hooks for the encoder of a model with image_places "background": patches that are not all white lose their
    position embedding. base: `model.model`; pixels: [batch, 3, canvas, canvas]."""
    if marks.get("image_places") != "background":
        return []
    embeddings = base.vision_tower.embeddings
    darkest = -max_pool2d(-pixels.amin(1, keepdim=True).float(), embeddings.patch_size)
    objects = (darkest < WHITE).flatten(1)[..., None]

    def remove(module, args, output):
        return output - objects * module.position_embedding.weight

    return [(embeddings, "after", remove)]
