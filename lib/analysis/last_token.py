"""Patching the last token: its controls, and where order and attribute peak (PROTOCOL.md 2; floor 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from lib.analysis import statistics
from lib.analysis.effects import couples, curves
from lib.analysis.studies import Study
from lib.stimuli.grids import Grid
from lib.stimuli.pairs import Pair
from lib.stimuli.questions import split
from lib.stimuli.scenes import line_scene

# --- controls: the question without a picture, another picture with the same question --------------------------


def on_empty_picture(study: Study) -> Study:
    """The same pairs, but the counterfactual question is asked about an empty canvas.

    The opposite question alone names the other end of the line. Whatever the last token of such a run moves comes from
    the words and not from an order that was seen in a picture.
    """
    vlm = study.vlm
    canvas = line_scene((None, None, None), vlm.grid, "horizontal").image(vlm.grid.canvas)
    images = torch.cat([study.clean.images, vlm.encode([canvas])])
    empty = np.full(len(study), len(images) - 1)
    counterfactual = replace(study.counterfactual, images=images, index=empty)
    return replace(study, clean=replace(study.clean, images=images), counterfactual=counterfactual)


def same_question_pairs(pairs: Sequence[Pair], grid: Grid) -> list[Pair]:
    """Last-token pairs whose counterfactual asks the *same* question of a picture with the reference at the far end.

    Clean, as before: (t0, t1, t2), left of t1, answer t0 in the first place. Counterfactual: (t3, t4, t1), left of t1,
    answer t4 in the middle place. Roles: clean t0, order t1 (in the middle of the clean picture), attribute t4.
    """
    out = []
    for pair in pairs:
        clean, other, near = pair.clean, pair.counterfactual, pair.clean.target
        t0, t1, t3, t4 = clean.entities[near], clean.entities[1], other.entities[2 - near], other.entities[near]
        line = (t3, t4, t1) if near == 0 else (t1, t4, t3)
        scene = line_scene(line, grid, clean.orientation)
        counterfactual = replace(
            clean, scene=scene, entities=line, candidates=(t4.name, t3.name, t1.name), target=1, reference=2 - near,
            split=split(clean.setting, line, grid),
        )  # fmt: skip
        out.append(Pair(clean, counterfactual, pair.roles, (t0.name, t1.name, t4.name)))
    return out


def beyond_words(table: pd.DataFrame, words: pd.DataFrame, seed: int = 0) -> statistics.Estimate:
    """Largest mean P(order) over slots minus the largest of the control, mean of the two axes (C1).

    table: a sweep; words: that of the same pairs by `on_empty_picture`. Every resample of pairs finds its own maxima.
    """
    both = [curves(rows, role="order") for rows in (table, words)]
    axis = table.drop_duplicates("pair").sort_values("pair")["orientation"].to_numpy()

    def beyond(order, control, axis):
        peaks = [order[axis == a].mean(0).max() - control[axis == a].mean(0).max() for a in np.unique(axis)]
        return float(np.mean(peaks))

    return statistics.bootstrap(beyond, *both, axis, units=couples(table), seed=seed)


# --- peaks ----------------------------------------------------------------------------------------------------


def stays_above(curve: Float[np.ndarray, " slot"], level: float = 0.5) -> float:
    """The first slot from which a curve stays above a level until its end; NaN when it does not end above it."""
    below = np.flatnonzero(~(curve > level))
    first = below[-1] + 1 if len(below) else 0
    return float(first) if first < len(curve) else np.nan


def peaks(table: pd.DataFrame, seed: int = 0) -> dict[str, statistics.Estimate]:
    """Where order and attribute stand in the last token (C1); every resample of pairs finds its own maximum.

    order_peak: largest mean P(order) over slots. order_slot, attribute_slot: slots where mean P(order) and mean
    P(attribute) are largest. attribute_from: slot from which P(attribute) stays above 1/2.
    """
    both = [curves(table, role=role) for role in ("order", "attribute")]
    found = {
        "order_peak": lambda order, attribute: order.mean(0).max(),
        "order_slot": lambda order, attribute: order.mean(0).argmax(),
        "attribute_slot": lambda order, attribute: attribute.mean(0).argmax(),
        "attribute_from": lambda order, attribute: stays_above(attribute.mean(0)),
    }
    units = couples(table)
    return {name: statistics.bootstrap(statistic, *both, units=units, seed=seed) for name, statistic in found.items()}
