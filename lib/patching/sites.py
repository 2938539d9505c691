"""Sites of activation patching: the tensors inside language-model layers that are read in one run and written in
another.

A new site is one line, `NEURONS = Site("neurons", "mlp.down_proj", "before")`: the module inside a layer, and whether
its input or its output is meant. Sweeps and their tables take it as they take those below; add it to `SITES` of
tests/test_contracts_sites.py, and the contracts are run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lib.engine.hooks import Registration, on_input, on_output
from lib.engine.language import LanguageModel


@dataclass(frozen=True)
class Site:
    """A tensor [batch, token, width] of every layer: the input ("before") or output ("after") of a module in it.

    head: only this head's slice of the width, one of num_attention_heads equal ones.
    """

    name: str
    module: str
    when: str = "after"
    head: int | None = None

    def slots(self, language: LanguageModel) -> range:
        """The slots (layers) it has."""
        return range(len(language.layers))

    def hook(self, language: LanguageModel, slot: int, visit: Callable[[Tensor], Tensor]) -> Registration:
        """A hook that replaces the tensor in one layer by what `visit` makes of it."""
        module = language.layers[slot].get_submodule(self.module)
        place = on_input if self.when == "before" else on_output
        return place(module, visit if self.head is None else self._one_head(language, visit))

    def _one_head(self, language: LanguageModel, visit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def share(tensor: Tensor) -> Tensor:
            width = tensor.shape[-1] // language.config.num_attention_heads
            own = slice(self.head * width, (self.head + 1) * width)
            seen = tensor[..., own]
            made = visit(seen)
            if made is seen:
                return tensor
            out = tensor.clone()
            out[..., own] = made
            return out

        return share


class ResidualStream(Site):
    """The residual stream at slots 0..L: the input of layer l, and the output of the last layer."""

    def slots(self, language: LanguageModel) -> range:
        return language.slots

    def hook(self, language: LanguageModel, slot: int, visit: Callable[[Tensor], Tensor]) -> Registration:
        if slot == len(language.layers):
            return on_output(language.layers[-1], visit)
        return on_input(language.layers[slot], visit)


RESIDUAL = ResidualStream("residual", "")
ATTENTION = Site("attention", "self_attn")  # in Gemma 3 a norm comes after it, as after the MLP
MLP = Site("mlp", "mlp")


def heads(language: LanguageModel) -> tuple[Site, ...]:
    """One site per attention head: its slice of what the output projection reads (z in TransformerLens)."""
    count = language.config.num_attention_heads
    return tuple(Site(f"head {k}", "self_attn.o_proj", "before", k) for k in range(count))
