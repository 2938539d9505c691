"""Layers of a derived model as `LanguageModel` runs them: one tensor in, one out, the rest by recorded arguments.

Where the picture enters the language model in later layers, too, the vector of a token is the residual stream followed
by its later inputs: what later layers will add to it (Qwen3-VL) or be given for it (Gemma 4). Whoever copies a token's
vector copies its later inputs with it.

A layer that has a state instead of keys and values is run on all tokens from the first one on; what is kept of the
tokens before is their vectors at its input. That is exact and saves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.engine.derived.observe import CACHE_ARGUMENTS, accepts
from lib.engine.hooks import first_output
from lib.engine.keys_values import KeyValues
from lib.engine.plans import Plan, causal_mask, separate_mask
from lib.errors import UserError

VERSIONS = "versions"  # argument of a whole layer: so many versions of the last token, which do not see each other


@dataclass(frozen=True)
class LaterInputs:
    """How the vector of a token is divided: `width` of residual stream, then what later layers add or are given.

    added: the first `added` layers add the next `width` numbers each to their output. own: the name of the argument by
    which every layer is given so many numbers (`share`) of its own.
    """

    width: int
    added: int = 0
    own: str | None = None
    share: int = 0

    def given(self, later: Tensor, number: int) -> dict:
        """What layer `number` is given besides the residual stream."""
        return {self.own: later[..., number * self.share : (number + 1) * self.share]} if self.own else {}

    def after(self, hidden: Tensor, later: Tensor, number: int) -> Tensor:
        """The output of layer `number` with what is added to it."""
        if number >= self.added:
            return hidden
        return hidden + later[..., number * self.width : (number + 1) * self.width]


class DerivedLayer(torch.nn.Module):
    """A layer of transformers, called as `LanguageModel.run` calls layers. whole: it cannot keep keys and values."""

    def __init__(self, inner: torch.nn.Module, number: int, later: LaterInputs, whole: bool):
        super().__init__()
        self.inner, self.number, self.later, self.whole = inner, number, later, whole
        stores = [name for name in CACHE_ARGUMENTS[:2] if accepts(inner.forward, name)]
        self.stores = stores or [CACHE_ARGUMENTS[0]]

    def __getattr__(self, name: str):
        """Parts of the layer itself (`layer.self_attn`) under its own names."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def get_submodule(self, target: str) -> torch.nn.Module:
        if target and self.whole:  # a part sees all tokens there, at other positions than its reader counts on
            raise UserError(
                "Only the residual stream can be read and patched here: layers run on all tokens every time."
            )
        return self.inner.get_submodule(target) if target else self

    def forward(self, hidden: Tensor, past_key_values: KeyValues | None = None, use_cache: bool = True, **given):
        if self.whole:
            return self._from_the_start(hidden, past_key_values, **given)
        store = {} if past_key_values is None else {name: past_key_values for name in self.stores}
        return self._layer(hidden, given | store)

    def _layer(self, vectors: Tensor, given: dict) -> Tensor:
        hidden, later = vectors[..., : self.later.width], vectors[..., self.later.width :]
        out = first_output(self.inner(hidden, **(given | self.later.given(later, self.number))))
        out = self.later.after(out, later, self.number)
        return torch.cat([out, later], dim=-1) if later.shape[-1] else out

    def _from_the_start(self, hidden: Tensor, store: KeyValues | None, **given) -> Tensor:
        versions = given.pop(VERSIONS, 0)
        count = hidden.shape[1]
        if store is None:
            return self._layer(hidden, given)
        if versions and self.number in store.past:
            before = store.past[self.number][0][:, 0]
            before = before.expand(len(hidden), -1, -1).repeat_interleave(count, dim=0)
            every = torch.cat([before, hidden.reshape(-1, 1, hidden.shape[-1])], dim=1)
            return self._layer(every, given)[:, -1].reshape(hidden.shape)
        every = store.update(hidden[:, None], hidden[:, None, :, :0], self.number)[0][:, 0]
        return self._layer(every, given)[:, -count:]


@dataclass(frozen=True)
class RecordedPlan(Plan):
    """What transformers hands to each layer, under whatever names: tensors with one entry per token are cut by token.

    whole: layers are run on all tokens from the first one on.
    """

    whole: bool = False

    def part(self, layer: int, first: int, stop: int) -> dict:
        given = self.layers[layer]
        first = 0 if self.whole else first
        if first == 0 and stop == self.length:
            return dict(given)
        index = torch.arange(first, stop)
        out = {key: self._at(key, value, index, stop) for key, value in given.items()}
        if out.get("attention_mask") is None and first > 0 and stop - first > 1:
            out["attention_mask"] = causal_mask(first, stop, self.device)
        return out

    def variants(self, layer: int, count: int) -> dict:
        if self.whole:
            return self.layers[layer] | {VERSIONS: count}
        last = self.length - 1
        index = torch.full((count,), last)
        out = {key: self._at(key, value, index, last) for key, value in self.layers[layer].items()}
        out["attention_mask"] = separate_mask(out.get("attention_mask"), count, last, self.device)
        return out

    @property
    def device(self) -> torch.device:
        found = (tensor for given in self.layers for value in given.values() for tensor in _tensors(value))
        return next((tensor.device for tensor in found), torch.device("cpu"))

    def _at(self, key: str, value, index: Tensor, stop: int):
        """An argument at chosen tokens, masks up to token `stop`."""
        if isinstance(value, (tuple, list)):
            return type(value)(self._at(key, part, index, stop) for part in value)
        if not isinstance(value, Tensor):
            return value
        if "mask" in key:
            return value[..., index.to(value.device), :stop] if value.ndim >= 3 else value[:, :stop]
        axes = [i for i in range(value.ndim) if value.shape[i] == self.length]
        axis = next((i for i in axes if i > 0), axes[0] if axes else None)  # the first after the batch
        return value if axis is None else value.index_select(axis, index.to(value.device))


def _tensors(value) -> Iterable[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []
