"""Pairs made ready for sweeps, and what a sweep says on one scale (floor 3: no files, no plots).

The designs of PROTOCOL.md 2, 4, 5 and 6 differ in their pairs and in their edits only: `Study` holds pairs as runs of
one model, `effect` reads a patched run between its two baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib import stats
from lib.errors import UserError
from lib.interventions import Run, ordering_ablation
from lib.pairs import AblatedPair, Pair
from lib.tokens import object_tokens
from lib.vlm import VLM


@dataclass(frozen=True)
class Study:
    """Pairs as runs of one model: row k of both runs is pairs[k], and both runs share their image tokens.

    ids: candidates [pair, role, spelling]. labels: setting, direction, split of each pair.
    """

    vlm: VLM
    pairs: tuple[Pair, ...]
    clean: Run
    counterfactual: Run
    ids: Tensor

    @property
    def roles(self) -> tuple[str, ...]:
        return self.pairs[0].roles

    @property
    def other(self) -> np.ndarray:
        """The counterfactual picture of each pair, as token sweeps take it."""
        return self.counterfactual.index

    @property
    def labels(self) -> pd.DataFrame:
        rows = [(p.setting, p.direction, p.split) for p in self.pairs]
        return pd.DataFrame(rows, columns=["setting", "direction", "split"])

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, mask) -> Study:
        """The study of chosen pairs; a UserError when none is left."""
        chosen = np.flatnonzero(np.asarray(mask)) if np.asarray(mask).dtype == bool else np.asarray(mask)
        if not len(chosen):
            raise UserError(f"{self.vlm.name} is right on both runs of no pair: nothing can be patched here.")
        pairs = tuple(self.pairs[k] for k in chosen)
        return replace(
            self, pairs=pairs, clean=self.clean.rows(chosen), counterfactual=self.counterfactual.rows(chosen),
            ids=self.ids[chosen],
        )  # fmt: skip

    @cached_property
    def right(self) -> pd.DataFrame:
        """Whether the most probable token of the whole vocabulary is right: columns clean, counterfactual."""
        wanted = "attribute" if "attribute" in self.roles else "counterfactual"
        columns = {"clean": (self.clean, 0), "counterfactual": (self.counterfactual, self.roles.index(wanted))}
        out = {}
        for name, (run, role) in columns.items():
            out[name] = np.zeros(len(self), dtype=bool)
            for rows, last in self.vlm.last_states(run.prompt, run.images, run.index):
                top = self.vlm.logits(last).argmax(-1).cpu()
                out[name][rows] = (self.ids[rows, role] == top[:, None]).any(1).numpy()
        return pd.DataFrame(out)

    def kept(self) -> Study:
        """The pairs on which the model is right in both runs (PROTOCOL.md 2 and 6)."""
        return self.rows(self.right.all(axis=1).to_numpy())


def study(vlm: VLM, pairs: Sequence[Pair], progress: bool = False) -> Study:
    """Encode every distinct picture of the pairs once and tokenise their questions."""
    items = [pair.clean for pair in pairs] + [pair.counterfactual for pair in pairs]
    images, index = vlm.distinct([item.scene.image(vlm.grid.canvas) for item in items], progress)
    count = len(pairs)
    clean = Run.of(vlm, [item.question for item in items[:count]], images, index[:count])
    other = Run.of(vlm, [item.question for item in items[count:]], images, index[count:])
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


def ablated(vlm: VLM, pairs: Sequence[AblatedPair], progress: bool = False) -> Study:
    """The study of the same pairs with order removed from every picture's image tokens (PROTOCOL.md 5).

    Pairs may mix directions; each picture is ablated along its own axis.
    """
    plain = [scene for pair in pairs for scene in (*pair.alone, pair.empty)]
    images, index = vlm.distinct([scene.image(vlm.grid.canvas) for scene in plain], progress)
    index = index.reshape(-1, 4)
    both, known = [], {}
    places = np.zeros((2, len(pairs)), dtype=int)
    for k, (pair, (*alone, empty)) in enumerate(zip(pairs, index, strict=True)):
        for run, entities in enumerate((alone, alone[::-1])):
            key = (pair.orientation, *entities, empty)
            if key not in known:
                known[key] = len(both)
                sets = [object_tokens(vlm.grid, pair.orientation, slot) for slot in range(3)]
                both.append(ordering_ablation(images, images[empty], np.array([entities]), sets, sets[1])[0])
            places[run, k] = known[key]
    stacked = torch.stack(both)
    questions = [pair.clean.question for pair in pairs]
    clean, other = (Run.of(vlm, questions, stacked, row) for row in places)
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


# --- effects --------------------------------------------------------------------------------------------------


def swing(table: pd.DataFrame, low: str = "clean", high: str = "counterfactual") -> pd.DataFrame:
    """P(high) - P(low) of every pair and run: the table without roles, column `swing`."""
    keys = [c for c in table.columns if c not in ("role", "probability", "logit")]
    wide = table[table["role"].isin((low, high))].pivot_table(index=keys, columns="role", values="probability")
    return (wide[high] - wide[low]).rename("swing").reset_index()


def effects(table: pd.DataFrame, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Where patched runs lie between the clean run (0) and the counterfactual run (1), in each cell of `by`.

    Columns by, n (pairs), effect, low, high. The effect is a ratio of means over pairs of P(counterfactual) -
    P(clean), its interval a bootstrap over whole pairs. NaN where the two baselines do not differ.
    """
    swings = swing(table)
    base = swings[swings["run"] != "patched"].pivot_table(index="pair", columns="run", values="swing")
    rows = []
    for key, cell in swings[swings["run"] == "patched"].groupby(list(by), sort=True):
        joined = cell.set_index("pair")[["swing"]].join(base)
        moved = joined["swing"] - joined["clean"]
        between = joined["counterfactual"] - joined["clean"]
        found = ratio(moved, between, units=joined.index, seed=seed)
        rows.append((*key, found.n, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=[*by, "n", "effect", "low", "high"])


def ratio(above, below, units=None, seed: int = 0) -> stats.Estimate:
    """Ratio of two means over the same units, with its bootstrap interval."""

    def quotient(a, b):
        return a.mean() / b.mean() if abs(b.mean()) > 1e-6 else np.nan

    return stats.bootstrap(quotient, np.asarray(above), np.asarray(below), units=units, seed=seed)
