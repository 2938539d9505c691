"""Positions of image tokens in the language model, other than the ones its family gives them (floor 2).

For planted models, and to ask a trained model what its positions do: `LanguageModel.with_positions`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# How far the position goes on from one row to the next, and from one column to the next.
STEPS = {"shared": (0, 0), "rows": (1, 0), "columns": (0, 1), "close": (1, 1)}
RASTER = "raster"  # every token one further than the one before, in models with M-RoPE, too
SCHEMES = (RASTER, *STEPS)


def placed(
    mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"],
    image: Int[Tensor, "batch image_token"],
    side: int,
    scheme: str,
) -> Int[Tensor, "batch token"]:
    """Position ids of a prompt under one of `SCHEMES`.

    mask: 0 or False where padded. image: where the image tokens are, in raster order, one picture after another. A
    token between image tokens (a row break) stands where the image token before it stands; text goes on one further.
    """
    if scheme == RASTER:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)
    down, right = STEPS[scheme]
    count, area = image.shape[1], side**2
    number = torch.arange(count, device=image.device) % area
    offset = number // side * down + number % side * right
    last = (side - 1) * (down + right)  # a later picture goes on from where the one before ends
    offset = torch.cat([offset.new_zeros(1), offset + torch.arange(count, device=image.device) // area * last])
    is_image = torch.zeros_like(mask, dtype=torch.long).scatter(1, image, 1)
    before = is_image.cumsum(-1) - is_image  # image tokens before each token
    after_first = before % area > 0
    return ((mask.long() * ~after_first).cumsum(-1) - 1).clamp(min=0) + offset[before + is_image]
