"""The image encoder: pictures to image tokens, with its residual stream read and written at any slot.

Encoder slot e is the residual stream at the input of encoder layer e, the last one the output that the projector reads.
Patches are handed out in raster order, whatever order a family computes them in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from lib.engine.batching import batch_size, input_device, run_batches
from lib.engine.families import Family
from lib.engine.hooks import Registration, hooks, on_input, on_output
from lib.engine.planted import marks, no_places_under_objects
from lib.errors import UserError
from lib.stimuli.grids import GRIDS, Grid


class ImageEncoder:
    """Image processor, encoder and projector of a model."""

    def __init__(self, model, processor, family: Family, grid: Grid | None = None, name: str = "model"):
        self.model, self.config, self.processor, self.family, self.name = model, model.config, processor, family, name
        self.marks = marks(model.config)
        self.merge = _merge(family, model.config)  # encoder patches per image token and side
        self.grid = grid or fitted_grid(family, model.config, self.merge)
        self.layers = model.model.get_submodule(family.encoder)
        self.projector = model.model.get_submodule(family.projector)

    @property
    def slots(self) -> range:
        """0..E: the input of encoder layer e, and the output of the last one that the projector reads."""
        count = len(self.layers)
        chosen = getattr(self.config, "vision_feature_layer", -1)  # counts slots, -1 is the last
        last = max(i if i >= 0 else count + 1 + i for i in ([chosen] if isinstance(chosen, int) else chosen))
        return range(last + 1)

    @property
    def base(self) -> torch.nn.Module:
        """The model without its head."""
        return getattr(self.model, "model", self.model)

    # pictures -----------------------------------------------------------------------------------------------

    def pixels(self, images: Sequence[Image.Image]) -> dict:
        """The arguments of get_image_features for a list of pictures of exactly the canvas size."""
        side = self.grid.canvas
        for image in images:
            if image.size != (side, side):
                raise UserError(
                    f"{self.name} needs pictures of {side} x {side} pixels ({self.grid.side} tokens of "
                    f"{self.grid.pixels} pixels), not {image.size[0]} x {image.size[1]}: "
                    "render or resize them to that."
                )
        images = [image.convert("RGB") for image in images]
        if self.family.tokens_after_grid:  # as in a prompt of several pictures: the whole picture once, no tiles
            images = [images if len(images) > 1 else images * 2]
        out = self.processor(images=images, return_tensors="pt", **self.family.options)
        out = {key: out[key] for key in self.family.inputs}
        if self.family.tokens_after_grid:
            count = len(images[0]) if images[0][0] is not images[0][-1] else 1
            out = {key: value[:count] for key, value in out.items()} | {"batch_num_images": torch.tensor([count + 1])}
        device = input_device(self.model)
        return {key: value.to(device) for key, value in out.items()}

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image.Image],
        edits: dict[int, Callable] | None = None,
        capture: Iterable[int] = (),
        progress: bool = False,
        at=slice(None),
    ):
        """Image tokens of pictures: [image, N*N, hidden], after the projector, in raster order.

        edits: {encoder slot: function(stream, index)}: the residual stream [image, patch, width] with patches in raster
        order, and which pictures these are. capture: encoder slots to return, too, of the patches `at` (all of them by
        default); then the result is a pair (tokens, {slot: [image, patch, width]}).
        """
        if not len(images):
            raise UserError("There is no picture to encode: give a list of at least one.")
        edits, capture = edits or {}, list(capture)
        tokens, read = [], {slot: [] for slot in capture}

        def work(index: np.ndarray):
            seen: dict[int, Tensor] = {}
            inputs = self.pixels([images[i] for i in index])
            planted = no_places_under_objects(self.marks, self.base, inputs["pixel_values"])
            with hooks(*planted, *self._hooks(index, edits, seen, set(capture), at)):
                return self.features(inputs), seen

        size = min(self.family.pictures_per_call, self.batch_size())
        for _, (part, seen) in run_batches(len(images), work, size, progress, "pictures"):
            tokens.append(part[:, : self.grid.side**2])
            for slot in capture:
                read[slot].append(seen[slot])
        out = torch.cat(tokens)
        return (out, {slot: torch.cat(parts) for slot, parts in read.items()}) if capture else out

    def features(self, inputs: dict) -> Float[Tensor, "image image_token hidden"]:
        """What the projector gives for the arguments of get_image_features."""
        out = self.model.model.get_image_features(**inputs, return_dict=True).pooler_output
        if not isinstance(out, Tensor):
            out = torch.cat([part.reshape(-1, part.shape[-1]) for part in out])
        return out.reshape(-1, self.grid.side**2 + self.family.tokens_after_grid, out.shape[-1])

    def _hooks(self, index, edits: dict[int, Callable], seen: dict, capture: set, at_patches) -> list[Registration]:
        """Hooks that read and write the residual stream at slots; slot e > 0 is written as the output of e - 1."""

        def at(slot: int) -> Callable[[Tensor], Tensor]:
            def visit(hidden: Tensor) -> Tensor:
                patches = self._to_raster(hidden, len(index))
                if slot in edits:
                    edited = edits[slot](patches, index)
                    hidden, patches = self._from_raster(edited, hidden), edited
                if slot in capture:
                    seen[slot] = patches[:, at_patches]
                return hidden

            return visit

        chosen = sorted(set(edits) | capture)
        before = [on_input(self.layers[0], at(0))] if 0 in chosen else []
        return before + [on_output(self.layers[slot - 1], at(slot)) for slot in chosen if slot > 0]

    @property
    def width(self) -> int:
        """Of the residual stream; Qwen2-VL's configuration calls it embed_dim, hidden_size is behind its merger."""
        vision = self.config.vision_config
        return getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", 1024)

    def batch_size(self) -> int:
        """Pictures per batch."""
        patches, device = (self.grid.side * self.merge) ** 2, input_device(self.model)
        return batch_size(patches, self.width, len(self.layers), self.model.dtype, device)

    # patches ------------------------------------------------------------------------------------------------

    @property
    def patch_order(self) -> Int[Tensor, " patch"]:
        """Raster number of the patch at each position of the encoder's sequence (one picture, class token left out)."""
        return raster_numbers(self.family.patch_order, self.grid.side, self.merge, _window(self.config, self.family))

    def _to_raster(self, hidden: Tensor, count: int) -> Float[Tensor, "image patch hidden"]:
        if self.family.packed:
            hidden = hidden.reshape(count, -1, hidden.shape[-1])
        elif self.family.patch_order == "class":
            hidden = hidden[:, 1:]
        return hidden[:, torch.argsort(self.patch_order).to(hidden.device)]

    def _from_raster(self, patches: Tensor, like: Tensor) -> Tensor:
        out = patches[:, self.patch_order.to(patches.device)].to(like.dtype)
        if self.family.packed:
            return out.reshape(like.shape)
        return torch.cat([like[:, :1], out], dim=1) if self.family.patch_order == "class" else out

    def patches(self, tokens) -> Int[np.ndarray, " patch"]:
        """Raster numbers of the encoder patches under image tokens (several patches where the projector merges
        them)."""
        merge, side = self.merge, self.grid.side
        row, column = np.divmod(np.asarray(tokens), side)
        inner_row, inner_column = np.divmod(np.arange(merge * merge), merge)
        rows = row[..., None] * merge + inner_row
        return (rows * side * merge + column[..., None] * merge + inner_column).reshape(*row.shape[:-1], -1)


def distinct(images: Sequence[Image.Image]) -> tuple[list[int], np.ndarray]:
    """The first image of every picture among images, and for each image the number of its picture."""
    known: dict[bytes, int] = {}
    index, first = [], []
    for i, image in enumerate(images):
        digest = hashlib.sha256(str(image.size).encode() + image.convert("RGB").tobytes()).digest()
        if digest not in known:
            known[digest] = len(first)
            first.append(i)
        index.append(known[digest])
    return first, np.array(index, dtype=int)


@lru_cache(maxsize=32)
def raster_numbers(order: str, side: int, merge: int, window: int | None) -> Tensor:
    """Raster number of the patch at each position of the encoder's sequence, by the name of the order."""
    raster = torch.arange((side * merge) ** 2).reshape(side, merge, side, merge)
    if order in ("raster", "class"):
        return raster.flatten()
    blocks = raster.permute(0, 2, 1, 3).reshape(side * side, merge * merge)
    if order == "windows":  # windows of `window` tokens a side, each holding its tokens in raster order
        tokens = torch.arange(side * side).reshape(side, side)
        starts = range(0, side, window)
        blocks = blocks[torch.cat([tokens[r : r + window, c : c + window].flatten() for r in starts for c in starts])]
    return blocks.flatten()


def _window(config, family: Family) -> int | None:
    """Window side in image tokens (Qwen2.5-VL)."""
    if family.patch_order != "windows":
        return None
    vision = config.vision_config
    return vision.window_size // vision.patch_size // vision.spatial_merge_size


def _merge(family: Family, config) -> int:
    """Encoder patches per image token and side: the configuration where it says so, else the record."""
    for part, key in ((config, "scale_factor"), (config.vision_config, "spatial_merge_size")):
        if isinstance(getattr(part, key, None), int):
            return getattr(part, key)
    if getattr(config, "mm_tokens_per_image", None):  # Gemma 3 pools its square of patches to so many tokens
        vision = config.vision_config
        return vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image)
    return family.merge


def fitted_grid(family: Family, config, merge: int) -> Grid:
    """The grid that the configuration names, else the family's, fitted to the sizes in the configuration."""
    named = marks(config).get("grid")
    if named:
        return GRIDS[named]
    vision, grid = config.vision_config, family.grid
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    pixels = patch * merge
    side = grid.side
    if not family.packed:  # a fixed picture size
        size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        side = size // patch // merge
    return grid.resized(side, pixels)
