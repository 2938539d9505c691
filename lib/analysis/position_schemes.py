"""Does the axis that survives the ordering ablation follow the positions of image tokens? (PROTOCOL.md 9.4)

The same questions with the image tokens at other positions in the language model, intact and after the ablation: at
one position per row or per column, all at one, in raster order (for models with M-RoPE), or with rows as close to one
another as columns; and with the tokens themselves in random order. A model has not been trained for any of them, so
the accuracy of the intact picture stands beside every value.
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
    """Columns orientation, scheme, step, measure (correct: share, named: `ladder.order_named`), n, value, low, high;
    intervals over pairs (named) or runs (correct, Wilson)."""
    rows = []
    for (orientation, scheme, step), cell in table.groupby(["orientation", "scheme", "step"], sort=False):
        found = {
            "correct": statistics.proportion(int(cell["correct"].sum()), len(cell)),
            "named": ladder.order_named(cell, step, seed),
        }
        rows += [(orientation, scheme, step, name, x.n, x.value, x.low, x.high) for name, x in found.items()]
    return pd.DataFrame(rows, columns=["orientation", "scheme", "step", "measure", "n", "value", "low", "high"])


def survives(table: pd.DataFrame, least: float = 0.5) -> dict[str, list[str]]:
    """The schemes under which each axis survives the ablation: `named` is above `least` with its whole interval."""
    last = table[(table["step"] == ladder.STEPS[-1]) & (table["measure"] == "named") & (table["low"] > least)]
    return {axis: list(last.loc[last["orientation"] == axis, "scheme"]) for axis in table["orientation"].unique()}
