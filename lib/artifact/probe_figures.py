"""Figures of notebook 03 about probes and interchange."""

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


def interchange(swings: pd.DataFrame, settings):
    """Swing over the slot of an interchange, order removed (top) and intact, a column per setting; returns the figure.

    swings: setting, ablated, edit ("object", "strip", "places" or "none", the run without an edit), slot, n, swing,
    low, high.
    """
    figure, axes = figures.panels(2, len(settings), height=2.1, sharex=True, sharey=True)
    for row, ablated in zip(axes, (True, False), strict=True):
        for axis, name in zip(row, settings, strict=True):
            _swings(axis, swings[(swings["setting"] == name) & (swings["ablated"] == ablated)])
            axis.set_title(f"{name}, order {'removed' if ablated else 'intact'} {axis.get_title()}")
        row[0].set_ylabel("P(opposite) - P(target)")
    for axis in axes[1]:
        axis.set_xlabel("slot of the interchange")
    figures.legend_below(figure, axes[1, 0])
    return figure


def _swings(axis, rows: pd.DataFrame) -> None:
    """One panel, its title the number of pairs."""
    for edit, role in (("object", "object"), ("strip", "strip"), ("places", "middle")):
        figures.curve_with_band(axis, rows[rows["edit"] == edit], "slot", "swing", role, edit)
    for run in rows[rows["edit"] == "none"].itertuples():
        axis.axhline(run.swing, color=figures.GREY, linewidth=0.8, linestyle=figures.DOTS, zorder=0)
    count = rows["n"].max() if len(rows) else 0
    if not count:
        axis.annotate("no pair is right\nin both runs", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axis.set(title=f"(n = {count})", ylim=(-1.05, 1.15))
