"""What small changes of a picture or a token show about a model: which image token stands for which place, in what
order the encoder holds its patches, which tokens see which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lib.engine.derived.observe import (
    Refused,
    feature_owner,
    features,
    image_token,
    inputs,
    named_arguments,
    watch,
)
from lib.engine.encoder import raster_numbers
from lib.engine.hooks import hooks

MOVED = 1e-6  # relative change of a vector from which it counts as changed
CLEAR = 0.9  # share of the places at which the token that moves most must be the place's own


@dataclass
class Trial:
    """A model with what turns pictures into its arguments, and a prompt to try it with.

    pixels: function from pictures to the arguments of the forward pass by name; side: pixels of a square picture.
    """

    model: torch.nn.Module
    pixels: object
    canvas: int

    def __post_init__(self):
        self.image_id = image_token(self.model.config)
        rng = np.random.default_rng(0)
        shape = (2, self.canvas, self.canvas, 3)
        self.pictures = [Image.fromarray(x) for x in rng.integers(0, 256, shape, dtype=np.uint8)]

    def more_pictures(self) -> Iterator[Image.Image]:
        """Plain grey, and more noise."""
        yield Image.new("RGB", (self.canvas,) * 2, (128, 128, 128))
        shape = (2, self.canvas, self.canvas, 3)
        yield from (Image.fromarray(x) for x in np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))

    def features(self, pictures) -> tuple[Tensor, list[Tensor]]:
        return features(self.model, self.pixels(pictures), len(pictures))

    def batch(self, count: int, pictures) -> dict:
        """A prompt of 5 words, `count` image tokens, 7 words, with one picture per row."""
        size = self.model.get_input_embeddings().weight.shape[0]
        words = [i for i in range(3, min(size, 60)) if i != self.image_id]
        row = words[:5] + [self.image_id] * count + words[5:12]
        ids = torch.tensor([row] * len(pictures))
        return inputs(self.model, ids, torch.ones_like(ids), self.image_id, self.pixels(pictures))


# --- the order of image tokens ------------------------------------------------------------------------------


def token_order(trial: Trial, tokens: Tensor) -> tuple[tuple[int, ...], int]:
    """(number of the image token at each place of the picture in raster order, places per side).

    Tokens that are equal for two pictures are constants. Of the others, the one that moves most when the pixels of
    one place change stands for that place. Raster order, which most models have, is tried first at a few places.
    """
    moving = ((tokens[0] - tokens[1]).abs().amax(-1) > MOVED * tokens.abs().max()).nonzero()[:, 0]
    side = math.isqrt(len(moving))
    if len(moving) > 8 and len(moving) == 2 * math.isqrt(len(moving) // 2) ** 2:
        raise Refused("tiles: the picture is shown twice (whole and as a tile), a place has two image tokens")
    if side < 3 or side * side != len(moving):
        raise Refused(f"resampler or tiles: {len(moving)} image tokens of a square picture are not a square grid")
    if trial.canvas % side:
        raise Refused(f"sizes: {side} x {side} image tokens do not divide a picture of {trial.canvas} pixels")
    columns = np.random.default_rng(2).permutation(side)  # one place in every row and every column
    few = [row * side + int(column) for row, column in enumerate(columns)]
    first = evidence(trial, trial.pictures[0], side, few, moving)
    if bool((first.argmax(1) == torch.tensor(few)).all()):
        return tuple(moving.tolist()), side
    total = torch.zeros(side * side, side * side)
    for base in (*trial.pictures, *trial.more_pictures()):  # one picture is enough, as a rule
        total += evidence(trial, base, side, range(side * side), moving)
        found, clear = assignment(total)
        if clear:
            return tuple(moving[found].tolist()), side
    raise Refused("resampler: image tokens do not stand for places, a change in one place moves all of them alike")


def evidence(trial: Trial, base: Image.Image, side: int, places: Iterable[int], moving: Tensor) -> Tensor:
    """[place, token]: logarithm of how far each token moves when a place is changed, relative to its mean."""
    start, changed = trial.features([base])[0][0], list(changes(base, side, places))
    chunks = [trial.features(changed[i : i + 24])[0] for i in range(0, len(changed), 24)]
    moved = (torch.cat(chunks) - start)[:, moving].float().norm(dim=-1).cpu()
    return (moved / moved.mean(0, keepdim=True).clamp(min=1e-12)).clamp(min=1e-12).log()


def changes(base: Image.Image, side: int, places: Iterable[int]) -> Iterator[Image.Image]:
    """A picture with the pixels of one place inverted, for each of some of its side x side places."""
    step = base.size[0] // side
    for place in places:
        row, column = divmod(place, side)
        pixels = np.asarray(base).copy()
        where = pixels[row * step : (row + 1) * step, column * step : (column + 1) * step]
        where[:] = 255 - where
        yield Image.fromarray(pixels)


def assignment(evidence: Tensor) -> tuple[Tensor, bool]:
    """Which token stands for which place, and whether that is clear: at almost every place the token assigned to it
    moves most. evidence [place, token]: logarithm of how far the token moves with the place, relative to its mean."""
    _, chosen = linear_sum_assignment(-evidence.double().numpy())
    chosen = torch.tensor(chosen)
    return chosen, bool((evidence.argmax(1) == chosen).float().mean() > CLEAR)


# --- attention and modules ----------------------------------------------------------------------------------


def sees_ahead(trial: Trial, layers: torch.nn.ModuleList, count: int, changed: int, read: int) -> bool:
    """Whether the output of token `read` depends on token `changed`, by number in the trial prompt (measured)."""
    batch = trial.batch(count, trial.pictures[:1])

    def change(module, args, kwargs):
        hidden, given = named_arguments(module, args, kwargs)
        hidden = hidden.clone()
        hidden[:, changed] = hidden[:, changed].flip(-1)
        return (hidden,), given

    plain = watch(trial.model, layers, batch).output[-1]
    with hooks((layers[0], "before", change)):
        other = watch(trial.model, layers, batch).output[-1]
    return bool((plain - other)[0, read].abs().max() > MOVED * plain.abs().max())


def projector_path(trial: Trial, order: tuple[int, ...], prefix: str) -> str:
    """The module whose output is the projector's output, in whatever order; empty where no module gives it."""
    found: list[str] = []
    tokens = trial.features(trial.pictures)[0][:, list(order)]
    width, wanted = (
        tokens.shape[-1],
        tokens.reshape(-1, tokens.shape[-1]).double().sum(-1),
    )  # its sum identifies a vector

    def hook(name):
        def after(module, args, output):
            if isinstance(output, Tensor) and output.shape[-1] == width:
                if torch.isin(wanted, output.reshape(-1, width).double().sum(-1)).all():
                    found.append(name)

        return after

    owner = feature_owner(trial.model)
    with hooks(*((m, "after", hook(n)) for n, m in owner.named_modules() if n)):
        trial.features(trial.pictures)
    return min(found, key=lambda n: n.count(".")) if found else ""


def encoder_facts(trial: Trial, encoder: str | None, side: int) -> tuple[int, str, bool]:
    """(patches per image token and side, order of the encoder's patches, whether pictures form one sequence)."""
    if encoder is None:
        return 1, "raster", False
    layers = trial.model.get_submodule(encoder)

    def first(pictures):
        seen: list[Tensor] = []

        def before(module, args, kwargs):
            seen.append(named_arguments(module, args, kwargs)[0])

        with hooks((layers[0], "before", before)):
            trial.features(pictures)
        return seen[0]

    one, two = first(trial.pictures[:1]), first(trial.pictures)
    packed = one.shape[:-1].numel() * 2 == two.shape[:-1].numel() and (one.ndim == 2 or two.shape[0] == 1)
    one = one.reshape(-1, one.shape[-1])
    extra = len(one) % (side**2)
    merge = math.isqrt(len(one) // side**2)
    if merge * merge * side**2 + extra != len(one) or merge == 0:
        return 1, "unknown", packed
    return merge, _named_order(trial, first, one, side, merge, extra), packed


def _named_order(trial: Trial, first, one: Tensor, side: int, merge: int, extra: int) -> str:
    """The order in which the encoder holds its patches, by the name `Family.patch_order` uses for it."""
    patches = side * merge
    places = changes(trial.pictures[0], patches, range(patches * patches))
    moved = torch.stack([first([changed]).reshape(one.shape) - one for changed in places])
    raster = moved.norm(dim=-1).argmax(1).cpu()
    if extra == 1 and torch.equal(raster, torch.arange(patches * patches) + 1):
        return "class"
    if extra:
        return "unknown"
    known = {"raster": None, "blocks": None}
    window = getattr(trial.model.config.vision_config, "window_size", None)
    if window:
        known["windows"] = window // trial.model.config.vision_config.patch_size // merge
    for name, size in known.items():
        if torch.equal(torch.argsort(raster_numbers(name, side, merge, size)), raster):
            return name
    return "unknown"
