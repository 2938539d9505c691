"""Results of sweeps as tidy tables: one row per pair, run, slot and candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.engine.language import scores
from lib.engine.tensors import Ids
from lib.engine.vlm import VLM

BASELINE = -1  # the slot of rows that belong to no slot
ORDER = ("site", "edit", "run", "slot", "pair", "alpha")  # rows of a finished table are sorted by these


@dataclass(frozen=True)
class Table:
    """Scores as tidy rows: pair, the sweep's own columns, role, probability, logit, and the labels.

    ids: candidates [pair, role, spelling]. is_top: add a column of this name: whether the most probable token of the
    whole vocabulary is a spelling of the role.
    """

    vlm: VLM
    ids: Ids
    roles: tuple[str, ...]
    labels: pd.DataFrame | None = None
    is_top: bool = False

    def part(self, pairs, last: Float[Tensor, "row hidden"], **columns) -> pd.DataFrame:
        """Rows for pairs whose last token is `last` at slot L; columns hold one value, or one per pair."""
        pairs = np.asarray(pairs)
        ids, logits = self.ids[torch.as_tensor(pairs)], self.vlm.logits(last)
        probability, logit = (x.cpu().numpy() for x in scores(logits, ids))
        count = len(self.roles)
        out = {"pair": np.repeat(pairs, count)}
        out |= {key: np.repeat(value, count) if np.ndim(value) else value for key, value in columns.items()}
        out |= {
            "role": np.tile(self.roles, len(pairs)),
            "probability": probability.ravel(),
            "logit": logit.ravel(),
        }
        if self.is_top:
            top = logits.argmax(-1).cpu()
            out["is_top"] = (ids == top[:, None, None]).any(-1).numpy().ravel()
        return pd.DataFrame(out)

    def versions(self, pairs, versions: Sequence[tuple[dict, Float[Tensor, "pair hidden"]]]) -> pd.DataFrame:
        """Rows, labels included, for several runs of the same pairs, each given as (columns, last token at slot L)."""
        columns = {key: np.repeat([own[key] for own, _ in versions], len(pairs)) for key in versions[0][0]}
        part = self.part(np.tile(pairs, len(versions)), torch.cat([last for _, last in versions]), **columns)
        if self.labels is None:
            return part
        extra = self.labels.reset_index(drop=True).iloc[part["pair"]].reset_index(drop=True)
        return pd.concat([part, extra], axis=1)

    def finish(self, parts: list[pd.DataFrame]) -> pd.DataFrame:
        """All parts in a fixed order."""
        out = pd.concat(parts, ignore_index=True)
        return out.sort_values([key for key in ORDER if key in out], kind="stable", ignore_index=True)
