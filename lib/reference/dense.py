"""A first stage for encoders with rotary positions: what is here, and what lies left, right, above and below of here?

Captions of rows and columns cannot teach an encoder that is nearly blind to the place of a lone thing; relations can,
and asked at every token they are plentiful. The answers are names (a colour or a drawn object), the readout is linear
and thrown away afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.reference import architectures, forward
from lib.reference.architectures import Size
from lib.reference.language import GRID
from lib.stimuli import scenes
from lib.stimuli.scenes import Scene

QUESTIONS = ("here", "left", "right", "above", "below")
NAMES = ("nothing", *dict.fromkeys((*scenes.COLOURS, *scenes.OBJECT_NAMES)))
NOTHING = 0.1  # weight of "nothing", the answer at most tokens


def occupancy(scene: Scene) -> Int[np.ndarray, "row column"]:
    """Which placement covers the centre of each token, -1 for none."""
    grid, out = GRID, np.full((GRID.side, GRID.side), -1)
    centres = (np.arange(grid.side) + 0.5) * grid.pixels
    for number, placement in enumerate(scene.placements):
        x0, y0, x1, y1 = placement.box
        rows, columns = (centres >= y0) & (centres < y1), (centres >= x0) & (centres < x1)
        out[np.ix_(rows, columns)] = number
    return out


def _before(covered: Int[np.ndarray, "line place"]) -> Int[np.ndarray, "line place"]:
    """For every place of every line the nearest placement before it that is not the one here, -1 for none."""
    lines, length = covered.shape
    out = np.full(covered.shape, -1)
    last, second = np.full(lines, -1), np.full(lines, -1)  # the nearest placement so far, and the nearest other one
    for place in range(length):
        here = covered[:, place]
        out[:, place] = np.where(last == here, second, last)
        new = (here >= 0) & (here != last)
        second, last = np.where(new, last, second), np.where(new, here, last)
    return out


def dense_targets(scene: Scene) -> Int[Tensor, "5 image_token"]:
    """Answers to QUESTIONS at every image token, as places in NAMES: along the token's own row or column."""
    here = occupancy(scene)
    maps = (
        here,
        _before(here),
        _before(here[:, ::-1])[:, ::-1],
        _before(here.T).T,
        _before(here[::-1].T).T[::-1],
    )
    names = np.array([*(NAMES.index(p.entity.name) for p in scene.placements), 0])  # the last one for -1
    return torch.from_numpy(np.stack([names[each].ravel() for each in maps]))


def token_features(model, pixels: Float[Tensor, "batch 3 canvas canvas"]) -> Float[Tensor, "batch image_token width"]:
    """The encoder's output averaged over the patches of each image token."""
    record, features = architectures.of(model), forward.encoder_features(model, pixels)
    batch, _, width = features.shape
    side, merge = GRID.side, record.merge
    if record.name == "qwen_style":  # its patches come token by token
        return features.reshape(batch, side**2, merge**2, width).mean(2)
    return features.reshape(batch, side, merge, side, merge, width).mean((2, 4)).reshape(batch, side**2, width)


class DenseHead(nn.Module):
    """Linear readout of the answers at every token."""

    def __init__(self, size: Size):
        super().__init__()
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, len(QUESTIONS) * len(NAMES))

    def forward(self, features: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch 5 token name"]:
        out = self.head(self.norm(features))
        return out.unflatten(-1, (len(QUESTIONS), len(NAMES))).transpose(1, 2)


def dense_loss(
    model, head: DenseHead, pixels: Float[Tensor, "batch 3 canvas canvas"], targets: Int[Tensor, "batch 5 token"]
) -> Tensor:
    """Mean cross-entropy, "nothing" weighing NOTHING."""
    logits = head(token_features(model, pixels)).float()
    weights = torch.ones(len(NAMES), device=logits.device)
    weights[0] = NOTHING
    return cross_entropy(logits.flatten(0, 2), targets.flatten(), weights)


@torch.no_grad()
def dense_accuracy(
    model, head: DenseHead, pixels: Float[Tensor, "batch 3 canvas canvas"], targets: Int[Tensor, "batch 5 token"]
) -> dict[str, float]:
    """Share of correct answers where there is something to name: under objects ("left at objects") and elsewhere."""
    answers = head(token_features(model, pixels)).argmax(-1)
    objects, found = targets[:, 0] > 0, {}
    for k, question in enumerate(QUESTIONS):
        for where, chosen in (("objects", objects), ("background", ~objects)):
            asked = chosen & (targets[:, k] > 0)
            if asked.any():
                found[f"{question} at {where}"] = (answers[:, k] == targets[:, k])[asked].float().mean().item()
    return found
