"""Keys and values of tokens, computed once and attended to again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class StopForward(Exception):
    """Raised where a forward pass has produced all that is needed; the rest is not computed."""


class KeyValues:
    """Keys and values of a stretch of tokens, layer by layer: the part of a transformers cache that attention calls.

    past: keys and values of the tokens before. layers: {layer: (keys, values)}, each [batch, head, token, head size],
    holds past and new tokens together when `keep` is set. `stop_after` names a layer after whose keys and values the
    forward pass may stop, because nobody reads its output.
    """

    def __init__(self, past: KeyValues | None = None, keep: bool = True, stop_after: int | None = None):
        self.past = past.layers if past else {}
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.keep, self.stop_after = keep, stop_after

    def update(self, keys: Tensor, values: Tensor, layer: int, *_, **__) -> tuple[Tensor, Tensor]:
        if layer in self.past:
            old_keys, old_values = self.past[layer]
            rows = (keys.shape[0], -1, -1, -1)
            keys = torch.cat([old_keys.to(keys.device).expand(*rows), keys], dim=2)
            values = torch.cat([old_values.to(values.device).expand(*rows), values], dim=2)
        if self.keep:
            self.layers[layer] = (keys, values)
        if layer == self.stop_after:
            raise StopForward
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before the new ones, for layers that count positions themselves."""
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
