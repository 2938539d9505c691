"""Pairs as runs of one model, ready for any sweep (floor 3: no files, no plots).

The designs of PROTOCOL.md 2, 4, 5 and 6 differ only in their pairs and in their edits. A `Study` holds the pairs, both
runs, and what the model answers in them without any edit.
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
from lib.patching.results import Table
from lib.patching.runs import Run
from lib.stimuli.pairs import Pair


@dataclass(frozen=True)
class Study:
    """Pairs as runs of one model: row k of both runs is pairs[k], and both runs share their image tokens.

    ids: token ids of the candidates [pair, role, spelling].
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
        """For each pair the row of its counterfactual picture in the image tokens, as token sweeps take it."""
        return self.counterfactual.index

    @property
    def labels(self) -> pd.DataFrame:
        """One row per pair: setting, direction, orientation, split, couple (`Pair.couple`, the unit of intervals)."""
        names = ["setting", "direction", "orientation", "split", "couple"]
        return pd.DataFrame([[getattr(pair, name) for name in names] for pair in self.pairs], columns=names)

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, mask) -> Study:
        """The study of some pairs (a mask, or their numbers); a UserError when none is chosen."""
        chosen = np.flatnonzero(np.asarray(mask)) if np.asarray(mask).dtype == bool else np.asarray(mask)
        if not len(chosen):
            raise UserError(f"{self.vlm.name} answers both runs correctly in no pair: nothing can be patched here.")
        pairs = tuple(self.pairs[k] for k in chosen)
        return replace(
            self, pairs=pairs, clean=self.clean.rows(chosen), counterfactual=self.counterfactual.rows(chosen),
            ids=self.ids[chosen],
        )  # fmt: skip

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """Both unpatched runs, one row per pair, run and role: pair, run, role, probability, logit, is_top.

        is_top: the most probable token of the whole vocabulary is a spelling of the role's word.
        """
        table = Table(self.vlm, self.ids, self.roles, is_top=True)
        parts = [
            table.part(rows, last, run=name)
            for name, run in (("clean", self.clean), ("counterfactual", self.counterfactual))
            for rows, last in self.vlm.language.last_states(run.prompt, run.images, run.index)
        ]
        return table.finish(parts)

    @cached_property
    def correct(self) -> pd.DataFrame:
        """Whether each pair's runs are answered correctly: boolean columns clean, counterfactual.

        Correct means that the most probable token of the whole vocabulary is a spelling of the answer.
        """
        is_top = self.baselines.pivot(index="pair", columns=["run", "role"], values="is_top")
        answer = "attribute" if "attribute" in self.roles else "counterfactual"
        columns = {"clean": self.roles[0], "counterfactual": answer}
        return pd.DataFrame({run: is_top[run, role].to_numpy(bool) for run, role in columns.items()})

    @property
    def both_correct(self) -> np.ndarray:
        """Whether both runs of each pair are answered correctly (PROTOCOL.md 2 and 6), a mask [pair]."""
        return self.correct.all(axis=1).to_numpy()

    def kept(self) -> Study:
        """The pairs of which both runs are answered correctly; a UserError when there is none."""
        return self.rows(self.both_correct)


def study(vlm: VLM, pairs: Sequence[Pair], progress: bool = False) -> Study:
    """Encode every distinct picture of the pairs once, and tokenise their questions."""
    items = [pair.clean for pair in pairs] + [pair.counterfactual for pair in pairs]
    images, index = vlm.distinct([item.scene.image(vlm.grid.canvas) for item in items], progress)
    count = len(pairs)
    clean = Run.of(vlm, [item.question for item in items[:count]], images, index[:count])
    other = Run.of(vlm, [item.question for item in items[count:]], images, index[count:])
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


def require_centred(pairs: Sequence[Pair]) -> None:
    """A UserError if a pair's lines are shifted: the token sets of edits belong to centred lines."""
    if any(pair.clean.shift != (0, 0) for pair in pairs):
        raise UserError("Token sets belong to lines in the middle of the canvas: draw these pairs without shift.")


def pictures(study: Study) -> list[Image.Image | None]:
    """The pictures behind the study's image tokens, in the same order; None for those that no pair uses."""
    out: list = [None] * len(study.clean.images)
    for k, pair in enumerate(study.pairs):
        for run, item in ((study.clean, pair.clean), (study.counterfactual, pair.counterfactual)):
            if out[run.index[k]] is None:
                out[run.index[k]] = item.scene.image(study.vlm.grid.canvas)
    return out
