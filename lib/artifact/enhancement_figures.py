"""Figures of notebook 05: the paper's bars, dose and response, what matters, and remedies side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.artifact import figures

# Table 2 of the paper, read off: accuracy without enhancement, random, order; share repaired by random, by order
PAPER = {"Gemma-3-4b": ("*", 0.53, 0.57, 0.72, 0.096, 0.402), "Qwen2-VL-2B": ("d", 0.60, 0.65, 0.82, 0.131, 0.545)}
PANELS = {
    "repaired": "repaired, of the failures",
    "broken": "broken, of correct answers",
    "net": "change of strict accuracy",
}


def against_paper(accuracy: pd.DataFrame, shares: pd.DataFrame, title: str):
    """Accuracy in both counts and shares repaired and broken, beside the numbers of the paper's Table 2.

    accuracy, shares: `enhancement.long_form` of the conditions none, random and order.
    """
    figure, axes = figures.panels(1, 2, height=2.8)
    figures.dots(axes[0], accuracy, x="condition", y="value", hue="measure")
    figures.dots(axes[1], shares, x="condition", y="value", hue="measure")
    for name, (marker, *numbers) in PAPER.items():
        style = {"marker": marker, "color": "black", "mfc": "white", "linestyle": "", "markersize": 6, "zorder": 1}
        axes[0].plot([x + 0.3 for x in range(3)], numbers[:3], label=f"paper, {name}", **style)
        axes[1].plot([x + 0.3 for x in range(2)], numbers[3:], **style)
    axes[0].set(ylim=(0, 1), ylabel="accuracy, both option orders", title=title)
    shares_label = "repaired: of the failures\nbroken: of the correct answers"
    axes[1].set(ylim=(0, 1), ylabel=shares_label, xlim=(-0.5, 1.6), title="the same items")
    axes[0].legend(loc="lower left", ncols=2, fontsize=7)
    axes[1].legend(loc="upper left")
    return figure


def _curve(scores: pd.DataFrame, name: str, bounds: tuple[str, str]) -> pd.DataFrame:
    """One measure by alpha, with the point at which nothing is changed."""
    curve = scores[["alpha", name, *bounds]].set_axis(["alpha", name, "low", "high"], axis=1)
    return pd.concat([curve, pd.DataFrame([{"alpha": 0, name: 0.0, "low": 0.0, "high": 0.0}])])


def dose(scores: pd.DataFrame, null: pd.DataFrame):
    """What the order directions repair and break at every alpha, beside the range of random sets.

    scores: `enhancement.score` of the order directions; null: that of the random sets.
    """
    figure, axes = figures.panels(1, 3, height=2.5)
    for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
        spread, look = null.groupby("alpha")[name].agg(["mean", "min", "max"]), figures.look("random")
        figures.curve_with_band(axis, _curve(scores, name, (f"{name}_low", f"{name}_high")), "alpha", name, "order")
        reach = np.clip([spread["mean"] - spread["min"], spread["max"] - spread["mean"]], 0, None)
        style = {"fmt": look.marker, "color": look.colour, "elinewidth": 2, "capsize": 3}
        axis.errorbar(spread.index, spread["mean"], reach, label="random sets, mean, smallest and largest", **style)
        axis.set(xlabel="alpha", ylabel=label)
        axis.axvline(0, color=figures.GREY, linewidth=0.6)
    axes[2].axhline(0, color=figures.GREY, linewidth=0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def shares(
    scores: pd.DataFrame,
    names: Sequence[str],
    chance: pd.DataFrame | None = None,
    matched: Sequence[str] = (),
    height: float = 3.2,
):
    """Repaired and broken of several conditions, a row each, with intervals; returns the figure.

    scores: `enhancement.score`, index = condition. chance: that of random sets, whose means are drawn as lines across
    the rows of `matched`, the first of `names`: those whose changes are as large as the random ones.
    """
    if list(names[: len(matched)]) != list(matched):
        raise ValueError("the conditions matched in size must come first")
    figure, axis = figures.panels(1, 1, height=height)
    cell = scores.loc[list(names)]
    for k, (name, line) in enumerate({"repaired": "-", "broken": "--"}.items()):
        look, positions = figures.look(name, k), np.arange(len(names)) + 0.2 * (k - 0.5)
        spread = np.clip([cell[name] - cell[f"{name}_low"], cell[f"{name}_high"] - cell[name]], 0, None)
        style = {"fmt": look.marker, "color": look.colour, "elinewidth": 1, "label": name}
        axis.errorbar(cell[name], positions, xerr=spread, **style)
        if chance is not None:
            drawn = {"color": look.colour, "linestyle": line, "linewidth": 0.9, "zorder": 0}
            label = f"{name}, mean of the random sets"
            axis.vlines(chance[name].mean(), -0.5, len(matched) - 0.5, label=label, **drawn)
    axis.set(xlabel="share of the failures (repaired), of the correct answers (broken)", xlim=(-0.02, None))
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
