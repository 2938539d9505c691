"""What each language-model layer is called with, and prompts grouped so that they can run together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.engine.keys_values import KeyValues
from lib.engine.prompts import Prompt
from lib.engine.tensors import Hidden


@dataclass(frozen=True)
class Plan:
    """What transformers hands to each language-model layer, for a batch of prompts or for one row that fits them
    all."""

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
            out["attention_mask"] = causal_mask(first, stop, cos.device)
        return out

    def variants(self, layer: int, count: int) -> dict:
        """Keyword arguments when `count` versions of the last token are computed side by side, each seeing the tokens
        before and itself, none another."""
        out = dict(self.layers[layer])
        out["position_embeddings"] = tuple(
            x[..., -1:, :].expand(*x.shape[:-2], count, x.shape[-1]) for x in out["position_embeddings"]
        )
        if out.get("position_ids") is not None:
            ids = out["position_ids"][..., -1:]
            out["position_ids"] = ids.expand(*ids.shape[:-1], count)
        mask, last = out["attention_mask"], self.length - 1
        before = None if mask is None else mask[..., -1:, :last].expand(-1, -1, count, -1)
        out["attention_mask"] = separate_mask(before, count, last, out["position_embeddings"][0].device)
        return out


def causal_mask(first: int, stop: int, device) -> Bool[Tensor, "1 1 query key"]:
    """Tokens first..stop-1 may attend to themselves and to all tokens before."""
    keys = torch.arange(stop, device=device)
    return (keys[None, :] <= keys[first:stop, None])[None, None]


def separate_mask(before: Tensor | None, count: int, tokens: int, device) -> Tensor:
    """Mask [batch, 1, version, token] of `count` versions of one token, each of which sees itself, none another.

    before: the mask of the `tokens` before it, boolean or additive; None where all are seen.
    """
    own = torch.eye(count, dtype=torch.bool, device=device)
    if before is None:
        before = torch.ones(1, 1, count, tokens, dtype=torch.bool, device=device)
    elif before.dtype != torch.bool:
        own = torch.zeros_like(own, dtype=before.dtype).masked_fill(~own, torch.finfo(before.dtype).min)
    own = own.expand(*before.shape[:2], count, count)
    return torch.cat([before, own.to(before.device)], dim=-1)


@dataclass(frozen=True)
class Group:
    """Prompts of one length and layout, so that they can run together without padding."""

    rows: Int[Tensor, " row"]  # which rows of the whole prompt
    prompt: Prompt
    plan: Plan


@dataclass(frozen=True)
class Frame:
    """Prompts that are equal up to the last image token: their image part is computed once per picture.

    first: position of the first image token; split: position after the last one, where the question begins.
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
