"""What a sweep shows, on one scale: swings, effects, and where the order comes from (floor 3: no files, no plots).

A patched run is read between its pair's two unpatched runs: on the scale of P(counterfactual) - P(clean) the clean run
is 0 and the counterfactual run 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.analysis import statistics

MOVES = ("code", "entity")  # what an interchange moves: the order code alone, or the entity with its tokens

# --- effects --------------------------------------------------------------------------------------------------


def swing(table: pd.DataFrame, low: str = "clean", high: str = "counterfactual") -> pd.DataFrame:
    """P(high) - P(low) of every pair and run: the table without roles, column `swing`."""
    keys = [c for c in table.columns if c not in ("role", "probability", "logit")]
    wide = table[table["role"].isin((low, high))].pivot_table(index=keys, columns="role", values="probability")
    return (wide[high] - wide[low]).rename("swing").reset_index()


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

    Columns by, n (pairs), effect, low, high. The effect is a ratio of means over pairs of P(counterfactual) -
    P(clean), its interval a bootstrap over whole pairs. NaN where the two baselines do not differ.
    """
    rows = []
    for key, cell in moved(table).groupby(list(by), sort=True):
        found = statistics.ratio(cell["moved"], cell["between"], units=cell["pair"], seed=seed)
        rows.append((*key, found.n, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=[*by, "n", "effect", "low", "high"])


def contrast(table: pd.DataFrame, first: str, second: str, slot: int = 0, seed: int = 0) -> statistics.Estimate:
    """Effect of region `first` minus that of region `second`, over the same pairs at one slot (code moves)."""
    cells = moved(table).query("slot == @slot and moves == 'code'").set_index(["region", "pair"])
    one, two = cells.loc[first], cells.loc[second]
    return statistics.ratio(one["moved"] - two["moved"].reindex(one.index), one["between"], units=one.index, seed=seed)


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


def interchange_rows(table: pd.DataFrame, stage: str, ablated: bool = False, seed: int = 0) -> pd.DataFrame:
    """The published form of an interchange (code moves): one row per setting, direction, region, slot and role.

    Columns setting, direction, region, stage, slot, ablated, role, n, probability, low, high, run. Baselines have
    region none and slot -1; `run` names them.
    """
    kept = table[table["moves"].isin(("none", "code")) & table["role"].isin(("clean", "counterfactual"))]
    by = ["setting", "direction", "region", "run", "slot", "role"]
    out = statistics.summarise(kept, by, seed=seed).assign(stage=stage, ablated=ablated)
    columns = ["setting", "direction", "region", "stage", "slot", "ablated", "role", "n", "probability", "low", "high"]
    return out[[*columns, "run"]]


# --- where the order comes from (PROTOCOL.md 8.8) -------------------------------------------------------------

SMALL, LARGE = 0.25, 0.75  # below SMALL together, or above LARGE each, two effects are not divided


def share_reading(code: float, entity: float) -> str:
    """How the two effects are to be read together: `divided` (their share means something), `neither` or `both`.

    neither: together below SMALL, so that the answer does not depend on what was interchanged. both: each above LARGE;
    either interchange flips the answer, so that the two sources are not in conflict.
    """
    if not np.isfinite(code + entity) or code + entity < SMALL:
        return "neither"
    return "both" if min(code, entity) > LARGE else "divided"


def shares(table: pd.DataFrame, by: Sequence[str] = ("region", "slot"), seed: int = 0) -> pd.DataFrame:
    """The embeddings' share of the order, code / (code + entity), from an `interchange_sweep` with both moves.

    Columns by, n, code, code_low, code_high, entity, entity_low, entity_high, reading (see `share_reading`), share,
    low, high (NaN unless the reading is `divided`; a share leaves 0..1 only by an effect below 0).

    code: effect of moving the order code while the entity stays. A model that reads order from the embeddings then
    gives the opposite answer (effect 1), one that makes it from token places stays with the target (0). entity: effect
    of moving the entity with its code. A model that reads the embeddings still finds the target's code with the target
    (0), one that goes by token places sees the mirrored picture and gives the opposite answer (1). Both are thus on
    the scale of `summarise`, and each interchange sets the two sources against each other.
    """
    rows = []
    for key, cell in moved(table).groupby(list(by), sort=True):
        wide = cell.pivot(index="pair", columns="moves", values="moved").reindex(columns=list(MOVES)).dropna()
        if wide.empty:  # interchanged in one way only
            continue
        between = cell.drop_duplicates("pair").set_index("pair")["between"].reindex(wide.index)
        code, entity = (statistics.ratio(wide[move], between, seed=seed) for move in MOVES)
        reading = share_reading(code.value, entity.value)
        share = statistics.Estimate(np.nan, np.nan, np.nan, len(wide))
        if reading == "divided":
            share = statistics.ratio(wide["code"], wide["code"] + wide["entity"], seed=seed)
        effect = (x for each in (code, entity) for x in (each.value, each.low, each.high))
        rows.append((*key, len(wide), *effect, reading, share.value, share.low, share.high))
    numbers = [f"{move}{end}" for move in MOVES for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*by, "n", *numbers, "reading", "share", "low", "high"])


# --- calibration (PROTOCOL.md 8.9) ----------------------------------------------------------------------------

EXPECTED = {"vision_only": (0.9, np.inf), "backbone_only": (-np.inf, 0.1)}  # the share's interval must lie within


def calibration_verdict(table: pd.DataFrame) -> str:
    """Whether the analysis gives the known answer for the models whose mechanism was built in, in one sentence.

    table: columns model, region, reading (see `share_reading`), low, high of the embeddings' share. Every share that
    was divided must be as expected, and strips, which hold objects and background, must give a share. Objects may read
    `neither`: a code that lies in the background does not move with them, which is an answer but no share.
    """
    missing = [name for name in EXPECTED if name not in set(table["model"])]
    wrong = []
    for name in (name for name in EXPECTED if name not in missing):
        rows, (least, most) = table[table["model"] == name], EXPECTED[name]
        inside = (rows["low"] > least) & (rows["high"] < most)
        no_share = (rows["region"] == "object") & (rows["reading"] == "neither")
        if not (inside | no_share).all() or not (rows["region"] == "strip").any():
            wrong.append(name)
    if wrong:
        return f"The analysis fails on {' and '.join(wrong)}: its shares mean nothing until that is repaired."
    if missing:
        return f"Not calibrated in full: {' and '.join(missing)} not available."
    return "The analysis gives the known answer for both calibration models."
