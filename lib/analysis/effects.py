"""What a sweep shows, on one scale: swings and effects (floor 3: no files, no plots).

A patched run is read between its pair's two unpatched runs: on the scale of P(counterfactual) - P(clean) the clean run
is 0 and the counterfactual run 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.analysis import statistics

# --- effects --------------------------------------------------------------------------------------------------


def swing(table: pd.DataFrame) -> pd.DataFrame:
    """P(counterfactual) - P(clean), the candidates, of every pair and run: the table without roles, column `swing`."""
    keys = [c for c in table.columns if c not in ("role", "probability", "logit")]
    rows = table[table["role"].isin(("clean", "counterfactual"))]
    wide = rows.pivot_table(index=keys, columns="role", values="probability")
    return (wide["counterfactual"] - wide["clean"]).rename("swing").reset_index()


def moved(table: pd.DataFrame) -> pd.DataFrame:
    """Patched runs of a sweep against the baselines of their pair.

    Columns of `swing`, and moved (its change from the clean run) and between (counterfactual minus clean run). Pairs
    are identified by their number only, so that each study's table needs a separate call.
    """
    swings = swing(table)
    base = swings[swings["run"] != "patched"].pivot_table(index="pair", columns="run", values="swing")
    base = base.reindex(columns=["clean", "counterfactual"])
    out = swings[swings["run"] == "patched"].join(base, on="pair")
    return out.assign(moved=out["swing"] - out["clean"], between=out["counterfactual"] - out["clean"])


def summarise(table: pd.DataFrame, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Where patched runs lie between the clean run (0) and the counterfactual run (1), in each cell of `by`.

    Columns by, n (couples), effect, low, high. The effect is a ratio of means over pairs of P(counterfactual) -
    P(clean), its interval a bootstrap over whole couples (`Pair.couple`). NaN where the two baselines do not differ.
    """
    rows = []
    for key, cell in moved(table).groupby(list(by), sort=True):
        found = statistics.ratio(cell["moved"], cell["between"], units=cell["couple"], seed=seed)
        rows.append((*key, found.n, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=[*by, "n", "effect", "low", "high"])


def flipped(table: pd.DataFrame) -> pd.DataFrame:
    """For every pair and patched run: has the counterfactual's answer become more probable than the clean one?"""
    keys = [c for c in table.columns if c not in ("role", "probability", "logit")]
    wide = table[table["run"] == "patched"].pivot_table(index=keys, columns="role", values="probability")
    return (wide["counterfactual"] > wide["clean"]).astype(float).rename("flipped").reset_index()


def curves(table: pd.DataFrame, value: str = "probability", **where) -> Float[np.ndarray, "pair slot"]:
    """Patched runs of a sweep as one curve over slots per pair, slots in order; `where` chooses rows (role=...)."""
    chosen = table[table["run"] == "patched"]
    for column, wanted in where.items():
        chosen = chosen[chosen[column] == wanted]
    return chosen.pivot(index="pair", columns="slot", values=value).to_numpy()


def couples(table: pd.DataFrame) -> np.ndarray:
    """The couple of each pair of a table, pairs in order: the units of `curves`."""
    return table.drop_duplicates("pair").sort_values("pair")["couple"].to_numpy()
