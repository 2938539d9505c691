"""The residual stream, prompts and cached keys and values: the parts a run of a language model is made of
(floor 2).

Vocabulary: slot l is the residual stream at the input of language-model layer l, slot L the output of the
last layer before the final norm. Image tokens are numbered in raster order, r * N + c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lib.errors import UserError

ImageTokens = Float[Tensor, "image image_token hidden"]  # after the projector; image_token = row * N + column
Hidden = Float[Tensor, "batch token hidden"]  # residual stream of the language model at one slot
Ids = Int[Tensor, "batch role spelling"]  # candidate token ids, padded with -1
Edit = Callable[[Tensor], Tensor]  # residual stream in, residual stream out; never in place


# --- hooks --------------------------------------------------------------------------------------------------


@contextmanager
def hooks(*registrations: tuple[torch.nn.Module, str, Callable]):
    """Own forward hooks for the length of a block: (module, "before" or "after", function); always removed.

    A function before a layer gets (module, args, kwargs), one after it (module, args, output). They run ahead
    of hooks that are already there, so that transformers' own recording of hidden states sees what they
    write.
    """
    handles = []
    try:
        for module, when, function in registrations:
            if when == "before":
                handle = module.register_forward_pre_hook(function, with_kwargs=True, prepend=True)
            else:
                handle = module.register_forward_hook(function, prepend=True)
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- keys and values ----------------------------------------------------------------------------------------


class Enough(Exception):
    """Raised where a run has all it came for; what would follow is not computed."""


class KeyValues:
    """Keys and values of a stretch of tokens, layer by layer: the part of a transformers cache that attention
    calls.

    past: keys and values of the tokens before. layers: {layer: (keys, values)}, each [batch, head, token,
    head size], holds past and new tokens together when `keep` is set. `enough` names a layer after whose keys
    and values the run may stop: nobody will read its output.
    """

    def __init__(self, past: KeyValues | None = None, keep: bool = True, enough: int | None = None):
        self.past = past.layers if past else {}
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.keep, self.enough = keep, enough

    def update(self, keys: Tensor, values: Tensor, layer: int, *_, **__) -> tuple[Tensor, Tensor]:
        if layer in self.past:
            old_keys, old_values = self.past[layer]
            rows = (keys.shape[0], -1, -1, -1)
            keys = torch.cat([old_keys.to(keys.device).expand(*rows), keys], dim=2)
            values = torch.cat([old_values.to(values.device).expand(*rows), values], dim=2)
        if self.keep:
            self.layers[layer] = (keys, values)
        if layer == self.enough:
            raise Enough
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before the new ones (asked by layers that count positions themselves)."""
        return self.past[layer][0].shape[2] if layer in self.past else 0

    def _map(self, function: Callable[[Tensor], Tensor]) -> KeyValues:
        out = KeyValues()
        out.layers = {layer: (function(k), function(v)) for layer, (k, v) in self.layers.items()}
        return out

    def first(self, tokens: int) -> KeyValues:
        """Those of the first tokens only (a view)."""
        return self._map(lambda x: x[:, :, :tokens])

    def rows(self, index) -> KeyValues:
        """Those of chosen batch rows; rows may repeat."""
        return self._map(lambda x: x[torch.as_tensor(index, device=x.device)])

    def row(self, index: int) -> KeyValues:
        """Those of one batch row (a view)."""
        return self._map(lambda x: x[index : index + 1])

    @staticmethod
    def stacked(parts: Sequence[KeyValues]) -> KeyValues:
        """Several, one below the other along the batch."""
        out = KeyValues()
        out.layers = {
            layer: tuple(torch.cat([part.layers[layer][k] for part in parts]) for k in (0, 1))
            for layer in parts[0].layers
        }
        return out

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)


# --- prompts and plans --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """Tokenised questions, padded on the left; the last token of every row predicts the answer."""

    ids: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]  # False where padded
    image: Int[Tensor, "batch image_token"]  # places of the image tokens in raster order, picture after picture

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def rows(self, index) -> Prompt:
        """Chosen rows, without padding that none of them needs."""
        index = torch.as_tensor(index, dtype=torch.long)
        cut = int((~self.mask[index]).sum(1).min())
        return Prompt(self.ids[index, cut:], self.mask[index, cut:], self.image[index] - cut)


@dataclass(frozen=True)
class Plan:
    """What transformers hands to each language-model layer, for a batch of prompts or for one row that fits
    them all."""

    layers: tuple[dict, ...]
    length: int

    def part(self, layer: int, first: int, stop: int) -> dict:
        """Keyword arguments of a layer when only tokens first..stop-1 are computed, seeing all up to stop."""
        out = dict(self.layers[layer])
        cos, sin = out["position_embeddings"]
        out["position_embeddings"] = (cos[..., first:stop, :], sin[..., first:stop, :])
        if out.get("position_ids") is not None:
            out["position_ids"] = out["position_ids"][..., first:stop]
        mask = out["attention_mask"]
        if mask is not None:
            out["attention_mask"] = mask[..., first:stop, :stop]
        elif first > 0 and stop - first > 1:  # without a mask, attention takes the queries for the first tokens
            out["attention_mask"] = _causal(first, stop, cos.device)
        return out

    def variants(self, layer: int, count: int) -> dict:
        """Keyword arguments when `count` versions of the last token are computed side by side, each seeing
        the tokens before and itself, none another."""
        out = dict(self.layers[layer])
        out["position_embeddings"] = tuple(
            x[..., -1:, :].expand(*x.shape[:-2], count, x.shape[-1]) for x in out["position_embeddings"]
        )
        if out.get("position_ids") is not None:
            ids = out["position_ids"][..., -1:]
            out["position_ids"] = ids.expand(*ids.shape[:-1], count)
        mask = out["attention_mask"]
        own = torch.eye(count, dtype=torch.bool, device=out["position_embeddings"][0].device)
        if mask is None:
            before = torch.ones(1, 1, count, self.length - 1, dtype=torch.bool, device=own.device)
        else:
            before = mask[..., -1:, : self.length - 1].expand(-1, -1, count, -1)
            if mask.dtype != torch.bool:  # an additive mask
                own = torch.zeros_like(own, dtype=mask.dtype).masked_fill(~own, torch.finfo(mask.dtype).min)
        own = own.expand(*before.shape[:2], count, count)
        out["attention_mask"] = torch.cat([before, own.to(before.device)], dim=-1)
        return out


def _causal(first: int, stop: int, device) -> Bool[Tensor, "1 1 query key"]:
    keys = torch.arange(stop, device=device)
    return (keys[None, :] <= keys[first:stop, None])[None, None]


@dataclass(frozen=True)
class Group:
    """Prompts of one length and layout, so that they can run together without padding."""

    rows: Int[Tensor, " row"]  # which rows of the whole prompt
    prompt: Prompt
    plan: Plan


@dataclass(frozen=True)
class Frame:
    """Prompts that are equal up to the last image token: their image part is computed once per picture.

    first: place of the first image token; split: place after the last one, where the question begins.
    """

    first: int
    split: int
    groups: tuple[Group, ...]
    prefix: tuple[int, ...]  # ids up to split: prefix and picture determine keys and values

    @property
    def image(self) -> Int[Tensor, " image_token"]:
        return self.groups[0].prompt.image[0]


@dataclass
class Output:
    """What a run gives: the state of the last token at slot L, and what was captured."""

    last: Float[Tensor, "batch hidden"] | None
    hidden: dict[int, Hidden] = field(default_factory=dict)
    keys: KeyValues | None = None


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


# --- memory --------------------


def run_batches(
    count: int, work: Callable[[np.ndarray], object], size: int, progress: bool = False, unit: str = "rows"
):
    """(indices, work(indices)) over 0..count-1 in batches; out of memory halves a batch and loses nothing."""
    silent = {} if progress else {"disable": True}  # said only when silent: TQDM_DISABLE in the environment counts, too
    with tqdm(total=count, unit=f" {unit}", leave=False, **silent) as bar:
        start = 0
        while start < count:
            index = np.arange(start, min(start + size, count))
            try:
                result = work(index)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    raise UserError(
                        "Out of memory with a single row: choose a smaller model or dtype=bfloat16."
                    ) from error
                size = max(1, size // 2)
                torch.cuda.empty_cache()
                continue
            yield index, result
            start += len(index)
            bar.update(len(index))


def _out_of_memory(error: Exception) -> bool:
    """On a GPU torch has an error of its own, on a CPU only words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
