"""Figures of notebook 03 about probes."""

from __future__ import annotations

import pandas as pd

from lib.artifact import figures

CHANCE = {"place": 1 / 3, "relation": 1 / 2}


def over_slots(table: pd.DataFrame):
    """Accuracy of the place and the relation probe over slots, with order intact and removed; returns the figure.

    table: task, ablated, orientation, test (entities, control, shuffled), slot, correct, low, high.
    """
    figure, axes = figures.panels(2, 2, height=2.1, sharex=True, sharey=True)
    for row, (task, chance) in zip(axes, CHANCE.items(), strict=True):
        for axis, ablated in zip(row, (False, True), strict=True):
            _curves(axis, table[(table["task"] == task) & (table["ablated"] == ablated)])
            axis.axhline(chance, color=figures.GREY, linewidth=0.8, linestyle=figures.DOTS, label="chance")
            axis.set(title=f"{task}, order {'removed' if ablated else 'intact'}", ylim=(0, 1.05))
        row[0].set_ylabel("share correct")
    for axis in axes[1]:
        axis.set_xlabel("slot")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _curves(axis, rows: pd.DataFrame) -> None:
    """One panel: unseen entities on both axes, and the controls on one of them, to keep it readable."""
    for orientation, role in (("horizontal", "left"), ("vertical", "above")):
        own = rows[(rows["orientation"] == orientation) & (rows["test"] == "entities")]
        name = f"unseen entities, {figures.AXES[orientation]}"
        figures.curve_with_band(axis, own, "slot", "correct", role, name)
    for test in ("control", "shuffled"):
        own = rows[(rows["test"] == test) & (rows["orientation"] == "horizontal")]
        figures.curve_with_band(axis, own, "slot", "correct", test, f"{test}, left-right")
