"""Does the axis that survives the ordering ablation follow the positions of image tokens? (PROTOCOL.md 9.4)

The same questions with the image tokens at other positions in the language model, intact and after the ablation: at
one position per row or per column, all at one, in raster order (for models with M-RoPE), or with rows as close to one
another as columns; and with the tokens themselves in random order. A model has not been trained for any of them. Three
controls stand beside every value: the intact picture, which shows that the model still answers but not that its route
from token places is intact, because other sources can answer there; the share of ablated answers that name a candidate;
and a scheme that is equally new but keeps the numbers of the axis asked about, which only that route can use.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from lib.analysis import ladder, statistics
from lib.analysis.studies import Study
from lib.engine.vlm import VLM

SCHEMES = {
    "own": "as the model makes them",
    "raster": "one further from token to token",
    "close": "rows as close as columns",
    "rows": "one position per row",
    "columns": "one position per column",
    "shared": "all at one position",
    "random": "tokens in random order",
}
SAME_AXIS = {"horizontal": "columns", "vertical": "rows"}  # new numbers that still tell the places along the axis
NAMED = 0.5  # share of answers that must name a candidate


def with_positions(vlm: VLM, scheme: str) -> VLM:
    """The same model with image tokens at other positions (`engine.positions.SCHEMES`)."""
    other = copy.copy(vlm)
    other.language = vlm.language.with_positions(scheme)
    return other


def in_random_order(study: Study, seed: int = 0) -> Study:
    """The study with the image tokens of every picture in an order of its own."""
    rng = np.random.default_rng(seed)
    images = study.clean.images
    order = torch.from_numpy(np.stack([rng.permutation(images.shape[1]) for _ in images])).to(images.device)
    mixed = images.gather(1, order[..., None].expand(images.shape))
    return replace(
        study, clean=replace(study.clean, images=mixed), counterfactual=replace(study.counterfactual, images=mixed)
    )


def under(study: Study, scheme: str, seed: int = 0) -> Study:
    """The study under one of `SCHEMES`."""
    if scheme == "own":
        return study
    if scheme == "random":
        return in_random_order(study, seed)
    return replace(study, vlm=with_positions(study.vlm, scheme))


def answers(steps: dict[str, Study], seed: int = 0) -> pd.DataFrame:
    """`ladder.left` of the first and last step of a ladder under every scheme, with a column scheme."""
    ends = {step: steps[step] for step in (ladder.STEPS[0], ladder.STEPS[-1])}
    parts = [
        ladder.left({step: under(study, scheme, seed) for step, study in ends.items()}).assign(scheme=scheme)
        for scheme in SCHEMES
    ]
    return pd.concat(parts, ignore_index=True)


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Columns orientation, scheme, step, measure (correct and names_neither: shares of answers, named:
    `ladder.order_named`), n, value, low, high; intervals over pairs (named) or runs (Wilson)."""
    rows = []
    for (orientation, scheme, step), cell in table.groupby(["orientation", "scheme", "step"], sort=False):
        found = {
            measure: statistics.proportion(int(cell[measure].sum()), len(cell))
            for measure in ("correct", "names_neither")
        }
        found["named"] = ladder.order_named(cell, step, seed)
        rows += [(orientation, scheme, step, name, x.n, x.value, x.low, x.high) for name, x in found.items()]
    return pd.DataFrame(rows, columns=["orientation", "scheme", "step", "measure", "n", "value", "low", "high"])


def readings(table: pd.DataFrame, least: float = 0.5) -> pd.DataFrame:
    """What becomes of the order that the ablation leaves under each scheme: orientation, scheme, reading, named, low,
    high, names_neither (the last four after the ablation). table: `summary`.

    survives, lost: the whole interval of `named` lies above, below `least`; undecided: it holds it. Not readable: the
    order of the intact picture is not above `least`, either, or fewer than `NAMED` of the ablated answers name one of
    the two candidates.
    """
    rows = []
    for (orientation, scheme), cell in table.groupby(["orientation", "scheme"], sort=False):
        own = cell.set_index(["step", "measure"])
        intact, left = own.loc[(ladder.STEPS[0], "named")], own.loc[(ladder.STEPS[-1], "named")]
        neither = own.loc[(ladder.STEPS[-1], "names_neither"), "value"]
        reading = "survives" if left["low"] > least else "lost" if left["high"] < least else "undecided"
        if intact["low"] <= least or neither > 1 - NAMED:
            reading = "not readable"
        rows.append((orientation, scheme, reading, left["value"], left["low"], left["high"], neither))
    return pd.DataFrame(rows, columns=["orientation", "scheme", "reading", "named", "low", "high", "names_neither"])


def in_words(table: pd.DataFrame) -> str:
    """The schemes by their reading, and the control, in one line; table: the rows of `readings` of one axis."""
    said = [f"{reading} under {', '.join(cell['scheme'])}" for reading, cell in table.groupby("reading", sort=False)]
    control = table.set_index("scheme").loc[SAME_AXIS[table["orientation"].iloc[0]]]
    value = statistics.in_figures(control["named"], control["low"], control["high"])
    return (
        f"{'; '.join(said)} (control, new numbers that keep this axis: {control.name}, {control['reading']}, {value})"
    )
