"""Does the fingerprint find what was built into planted models? (PROTOCOL.md 9.6)"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib.stimuli.grids import ORIENTATIONS

ZERO, ONE = (-0.15, 0.15), (0.85, np.inf)  # where the whole interval of a planted effect must lie
NOTHING = {"O": ZERO, "S": ZERO, "B": ZERO, "P": ZERO}
# By model and axis. Rivals that are not named may take any value: of `redundant`, none is, because who wins in it is
# measured, not planted; what must hold there is in silencing.py. Identities: the construction alone makes the effect
# what it is, whatever the weights, so that agreement checks the code, not the method. `split` is one of them: in its
# backbone the tokens of a row can change places without effect (left-right: S and P are 0), and its encoder gives the
# mirror picture of a vertical line as the same tokens in other rows (above-below: O, S and B are 0, P is 1). What it
# shows is that an effect of one axis is not read on the other.
PLANTED = {
    "vision_only": ({"P": ZERO, "S": ZERO}, {"P": ZERO, "S": ZERO}),
    "backbone_only": (NOTHING | {"P": ONE}, NOTHING | {"P": ONE}),
    "split": ({"P": ZERO, "S": ZERO}, NOTHING | {"P": ONE}),
    "strip_code": (NOTHING | {"S": ONE}, NOTHING | {"S": ONE}),
}
IDENTITIES = ("vision_only", "backbone_only", "split")


def expected(model: str) -> pd.DataFrame:
    """What a planted model must show: orientation, rival, least, most; no rows for other models."""
    rows = [
        (orientation, rival, *bounds)
        for orientation, row in zip(ORIENTATIONS, PLANTED.get(model, ()), strict=False)
        for rival, bounds in row.items()
    ]
    return pd.DataFrame(rows, columns=["orientation", "rival", "least", "most"])


def calibration(rivals: pd.DataFrame) -> pd.DataFrame:
    """Planted models against what was built into them, row by row.

    rivals: `rival_table` of several models, with a column model. Columns of it and least, most, holds (the whole
    interval lies between them), check ("plumbing" where the construction makes the value an identity, else "method").
    """
    parts = [
        cell.merge(expected(name), on=["orientation", "rival"]).assign(
            check="plumbing" if name in IDENTITIES else "method"
        )
        for name, cell in rivals.groupby("model", sort=False)
        if name in PLANTED
    ]
    nothing = rivals.head(0).assign(least=np.nan, most=np.nan, check="")
    out = pd.concat(parts, ignore_index=True) if parts else nothing
    return out.assign(holds=(out["low"] >= out["least"]) & (out["high"] <= out["most"]))


def calibrated(table: pd.DataFrame) -> str:
    """The table of `calibration` in one or two sentences."""
    missing = [name for name in PLANTED if name not in set(table["model"])]
    wrong = table[~table["holds"]]
    if len(wrong):
        cases = "; ".join(
            f"{x.model}, {x.orientation}, {'centred' if x.centred else 'shifted'}: {x.rival} = {x.value:.2f}"
            for x in wrong.itertuples()
        )
        return f"The fingerprint misses what was built in ({cases}): it must not be read until that is explained."
    found = [name for name in PLANTED if name not in missing]
    if not found:
        return "No planted model with a known row is available here: the fingerprint is not calibrated."
    text = f"The fingerprint finds what was built into {', '.join(found)}."
    fixed = [name for name in found if name in IDENTITIES]
    if fixed:
        text += f" In {', '.join(fixed)} the construction fixes these effects: that checks the code, not the method."
    return text + (f" Not available here: {', '.join(missing)}." if missing else "")
