"""Shapes of the engine's tensors, and how tokens are taken out of them and put into them.

Vocabulary: slot l is the residual stream at the input of language-model layer l, slot L the output of the last layer
before the final norm. Image tokens are numbered in raster order, r * N + c.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

ImageTokens = Float[Tensor, "image image_token hidden"]  # after the projector; image_token = row * N + column
Hidden = Float[Tensor, "batch token hidden"]  # residual stream of the language model at one slot
Ids = Int[Tensor, "batch role spelling"]  # candidate token ids, padded with -1
Edit = Callable[[Tensor], Tensor]  # residual stream in, residual stream out; never in place


def pick(images, index) -> ImageTokens:
    """Image tokens by number, from a tensor or from a function that makes them."""
    return images[torch.as_tensor(index, device=images.device)] if isinstance(images, Tensor) else images(index)


def put(hidden: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    """A copy of hidden [batch, token, d] with the vectors at positions [token] or [batch, token] replaced."""
    positions = torch.as_tensor(positions, device=hidden.device).expand(len(hidden), -1)
    index = positions[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.scatter(1, index, values.to(hidden.device, hidden.dtype).expand(index.shape))


def take(hidden: Tensor, positions: Tensor) -> Tensor:
    """The vectors at positions [token] or [batch, token] of hidden [batch, token, d]."""
    positions = torch.as_tensor(positions, device=hidden.device).expand(len(hidden), -1)
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
