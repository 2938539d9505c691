"""Interventions on tokens: what is written where. How they are run is in `lib.patching.sweep`.

Tokens are numbered as an edit sees them: 0..N*N-1 are the image tokens in raster order; -1 is the last token of the
prompt, -2 the one before it, and so on back to the first token of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.engine.tensors import put, take
from lib.errors import UserError

# --- interchange (PROTOCOL.md 2 and 4) ------------------------------------------------------------------------


@dataclass(frozen=True)
class Interchange:
    """Tokens `targets` of the clean run take the vectors of `sources` in the counterfactual run.

    Each is one set [token] for all pairs or one per pair [pair, token]; target k takes source k. `own=True` takes the
    sources from the clean run itself: regions change places within one picture.
    """

    targets: np.ndarray
    sources: np.ndarray
    own: bool = False

    def __post_init__(self):
        if np.shape(self.targets) != np.shape(self.sources):
            raise UserError("an interchange needs as many sources as targets")
        both = np.concatenate([np.ravel(self.targets), np.ravel(self.sources)])
        if not (np.all(both >= 0) or np.all(both < 0)):
            raise UserError("an interchange is of image tokens (0, 1, ...) or of those of the question (-1, -2, ...)")

    @property
    def in_question(self) -> bool:
        """Whether it edits tokens of the question, the last one included, and not image tokens."""
        return np.size(self.targets) > 0 and bool(np.all(np.asarray(self.targets) < 0))

    def key(self, pair: int) -> bytes:
        """Pairs with the same pictures and the same key share one patched picture."""
        return b"" if np.ndim(self.targets) == 1 else bytes(np.stack([self.targets[pair], self.sources[pair]]))

    def __call__(self, clean: Tensor, other: Tensor, pairs: np.ndarray) -> Tensor:
        """Image tokens [pair, N*N, d] of both runs at one slot -> the patched ones."""
        source = clean if self.own else other
        return put(clean, token_set(self.targets, pairs), take(source, token_set(self.sources, pairs)))


def token_set(tokens: np.ndarray, pairs: np.ndarray) -> Tensor:
    """The tokens of chosen pairs: [token] where all pairs have the same, else [pair, token]."""
    tokens = np.asarray(tokens)
    return torch.as_tensor(tokens if tokens.ndim == 1 else tokens[pairs])


def swap(first: Sequence[int], second: Sequence[int], own: bool = False) -> Interchange:
    """Both regions at once: `first` takes the other run's `second`, `second` its `first` (PROTOCOL.md 4)."""
    first, second = np.asarray(first), np.asarray(second)
    return Interchange(np.concatenate([first, second], -1), np.concatenate([second, first], -1), own)


LAST_TOKEN = Interchange(np.array([-1]), np.array([-1]))  # the last token becomes the counterfactual's

# --- ordering ablation (PROTOCOL.md 5) ------------------------------------------------------------------------


def ordering_ablation(
    alone: Float[Tensor, "entity token hidden"],
    empty: Float[Tensor, "token hidden"],
    entities: np.ndarray,
    places: Sequence[Sequence[int]],
    middle: Sequence[int],
) -> Float[Tensor, "scene token hidden"]:
    """Image tokens of scenes from which the order is removed.

    alone: image tokens of each entity standing alone in the middle; empty: those of the empty canvas. entities
    [scene, place]: which entity stands at each place. places: the tokens of each place; middle: those of the middle
    one. Every entity gets its own middle-place tokens, all other tokens are the empty canvas's: all N*N of them.
    """
    out = empty.expand(len(entities), -1, -1).clone()
    for place, tokens in enumerate(places):
        which = torch.as_tensor(np.asarray(entities)[:, place], device=alone.device)
        out[:, torch.as_tensor(np.asarray(tokens))] = alone[which][:, torch.as_tensor(np.asarray(middle))]
    return out


# --- amplification (PROTOCOL.md 7) ----------------------------------------------------------------------------


def amplify(
    tokens: Float[Tensor, "... hidden"],
    directions: Float[Tensor, "direction hidden"],
    alpha: float,
    mode: str = "project",
) -> Float[Tensor, "... hidden"]:
    """Image tokens with directions amplified.

    mode "project" (the authors' code): h += alpha * (h.w / w.w) * w for each direction w, from the same h.
    mode "add" (the paper's formula): h += alpha * w.
    """
    _check_alpha(alpha)
    return tokens + alpha * along(tokens, directions, mode)


def _check_alpha(alpha: float) -> None:
    if not np.isfinite(alpha):
        raise UserError(f"alpha must be a finite number, not {alpha}.")


def along(
    tokens: Float[Tensor, "... hidden"], directions: Float[Tensor, "direction hidden"], mode: str = "project"
) -> Float[Tensor, "... hidden"]:
    """What `amplify` adds at alpha = 1; a direction of length zero adds nothing."""
    w = directions.to(tokens.device, tokens.dtype)
    if mode == "add":
        return w.sum(0).expand_as(tokens)
    if mode != "project":
        raise UserError(f"mode must be 'project' or 'add', not {mode!r}")
    return tokens @ w.T / (w * w).sum(-1).clamp(min=torch.finfo(w.dtype).tiny) @ w


@dataclass(frozen=True)
class Along:
    """What amplification along directions [direction, d] adds at alpha = 1."""

    directions: Tensor
    mode: str = "project"

    def key(self, pair: int) -> bytes:
        """Pairs about one picture with the same key share one amplified picture."""
        return b""

    def __call__(self, tokens: Tensor, pairs: np.ndarray) -> Tensor:
        return along(tokens, self.directions, self.mode)


@dataclass(frozen=True)
class Amplification:
    """Image tokens plus alpha times a change: any function of tokens and pairs with a `key`, such as `Along`."""

    change: Callable
    alpha: float

    def __post_init__(self):
        _check_alpha(self.alpha)

    def key(self, pair: int) -> bytes:
        return self.change.key(pair)

    def __call__(self, clean: Tensor, other: Tensor, pairs: np.ndarray) -> Tensor:
        return clean + self.alpha * self.change(clean, pairs)
