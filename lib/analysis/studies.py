"""Pairs made ready for sweeps (floor 3: no files, no plots).

The designs of PROTOCOL.md 2, 4, 5 and 6 differ in their pairs and in their edits only: a `Study` holds pairs as runs
of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.interventions import (
    Run,
    Table,
)
from lib.stimuli.pairs import Pair


@dataclass(frozen=True)
class Study:
    """Pairs as runs of one model: row k of both runs is pairs[k], and both runs share their image tokens.

    ids: candidates [pair, role, spelling]. labels: setting, direction, orientation, split of each pair.
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
        rows = [(p.setting, p.direction, p.orientation, p.split) for p in self.pairs]
        return pd.DataFrame(rows, columns=["setting", "direction", "orientation", "split"])

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
    def baselines(self) -> pd.DataFrame:
        """Both unpatched runs, one row per pair, run and role: pair, run, role, probability, logit, and first (the most
        probable token of the whole vocabulary is a spelling of the role)."""
        table = Table(self.vlm, self.ids, self.roles, first=True)
        parts = [
            table.part(rows, last, run=name)
            for name, run in (("clean", self.clean), ("counterfactual", self.counterfactual))
            for rows, last in self.vlm.language.last_states(run.prompt, run.images, run.index)
        ]
        return table.finish(parts, None)

    @cached_property
    def right(self) -> pd.DataFrame:
        """Whether the most probable token of the whole vocabulary is right: columns clean, counterfactual."""
        first = self.baselines.pivot(index="pair", columns=["run", "role"], values="first")
        wanted = "attribute" if "attribute" in self.roles else "counterfactual"
        columns = {"clean": self.roles[0], "counterfactual": wanted}
        return pd.DataFrame({run: first[run, role].to_numpy(bool) for run, role in columns.items()})

    @property
    def both_right(self) -> np.ndarray:
        """Whether both runs of each pair are right (PROTOCOL.md 2 and 6), a mask [pair]."""
        return self.right.all(axis=1).to_numpy()

    def kept(self) -> Study:
        """The pairs with both runs right; a UserError when there is none."""
        return self.rows(self.both_right)


def study(vlm: VLM, pairs: Sequence[Pair], progress: bool = False) -> Study:
    """Encode every distinct picture of the pairs once and tokenise their questions."""
    items = [pair.clean for pair in pairs] + [pair.counterfactual for pair in pairs]
    images, index = vlm.distinct([item.scene.image(vlm.grid.canvas) for item in items], progress)
    count = len(pairs)
    clean = Run.of(vlm, [item.question for item in items[:count]], images, index[:count])
    other = Run.of(vlm, [item.question for item in items[count:]], images, index[count:])
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


def centred(pairs: Sequence[Pair]) -> None:
    """A UserError where a pair's lines are shifted: sets of image tokens are those of lines in the middle."""
    if any(pair.clean.shift != (0, 0) for pair in pairs):
        raise UserError("Token sets are those of lines in the middle of the canvas: draw these pairs without shift.")


def pictures(study: Study) -> list[Image.Image | None]:
    """The pictures behind the study's image tokens, in their order; None for those that no pair uses."""
    out: list = [None] * len(study.clean.images)
    for k, pair in enumerate(study.pairs):
        for run, item in ((study.clean, pair.clean), (study.counterfactual, pair.counterfactual)):
            if out[run.index[k]] is None:
                out[run.index[k]] = item.scene.image(study.vlm.grid.canvas)
    return out
