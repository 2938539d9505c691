"""Figures of notebook 01 about the model's answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lib.artifact import figures


def accuracies(table: pd.DataFrame, paper: Mapping[str, Mapping[str, float]]):
    """Share of correct answers by setting and direction, with chance and the paper's values; returns the figure.

    table: `behaviour.accuracy` by setting and direction; naturalistic scenes, whose questions have two options in both
    orders, come last. paper: by setting, the paper's models with their accuracy (`behaviour.PAPER`); their settings
    come first in the table.
    """
    figure, axis = figures.panels(1, 1, height=2.8)
    figures.dots(axis, table, x="setting", y="accuracy", hue="direction")
    last = table["setting"].nunique() - 1
    for chance, left, right in ((1 / 3, -0.5, last - 0.5), (1 / 4, last - 0.4, last + 0.5)):
        axis.hlines(chance, left, right, color=figures.GREY, linewidth=0.8, linestyle=figures.DOTS, zorder=0)
    axis.text(last - 0.5, 1 / 3, "one of three", ha="right", va="bottom", fontsize=7, color=figures.GREY)
    axis.text(last + 0.5, 1 / 4, "1/4", ha="right", va="bottom", fontsize=7, color=figures.GREY)
    by_model = pd.DataFrame(paper).T  # a row per setting, a column per model
    for (name, values), marker in zip(by_model.items(), "*dv", strict=True):
        style = {"color": "black", "markersize": 6, "mfc": "white", "linestyle": ""}
        axis.plot(np.arange(len(values)) + 0.36, values, marker=marker, label=f"paper, {name}", **style)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    axis.set(ylabel="share correct", ylim=(0, 1.03), xlabel="")
    return figure
