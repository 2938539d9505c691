"""Figures of notebook 04: probe maps of the background, strip scores, readings of shifted lines, effects of edits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection

from lib.artifact import figures
from lib.stimuli import questions
from lib.stimuli.grids import ORIENTATIONS, Grid
from lib.stimuli.token_sets import Tokens

PLACES = ("first", "middle", "last")
PROBES = ("order", "logistic", "held-out", "shuffled", "random", "other axis", "no objects")
READINGS = ("canvas", "line", "neither")
DOSE_LOOKS = {"random_alone": "shuffled"}  # a second control, in the look of one


def place_maps(table: pd.DataFrame, outlined: Mapping[str, Tokens], grid: Grid, height: float = 1.15):
    """Maps of the probabilities of the three places, a column of panels per map; returns the figure.

    table: `background.mean_maps`. outlined: by map, the tokens to draw a white line around (the objects).
    """
    names = list(dict.fromkeys(table["map"]))
    figure, axes = figures.panels(3, len(names), height=height, squeeze=False)
    for column, name in zip(axes.T, names, strict=True):
        own = table[table["map"] == name]
        inside = np.isin(np.arange(grid.side**2), outlined.get(name, [])).reshape(grid.side, grid.side)
        for axis, place in zip(column, PLACES, strict=True):
            image = figures.heat_map(axis, own[place])
            axis.add_collection(LineCollection(figures.outline(inside) - 0.5, colors="white", linewidths=1.2))
            axis.set(xticks=[], yticks=[])
        column[0].set_title(name.replace(", ", ",\n"))
    for axis, place in zip(axes[:, 0], PLACES, strict=True):
        axis.set_ylabel(f"P({place})")
    figure.colorbar(image, ax=axes, label="mean probability", shrink=0.8, pad=0.01)
    return figure


def profiles(table: pd.DataFrame):
    """Mean probability of each place along the axis, a row of panels per axis, a column per setting; returns the
    figure. table: `background.profile` summarised by setting, orientation, place and position."""
    figure, axes = figures.panels(2, 3, height=1.9, sharex=True, sharey=True)
    roles = dict(zip(PLACES, ("clean", "middle", "counterfactual"), strict=True))
    for (setting, orientation), part in table.groupby(["setting", "orientation"], sort=False):
        axis = axes[ORIENTATIONS.index(orientation), questions.SETTINGS.index(setting)]
        for place, (name, role) in enumerate(roles.items()):
            figures.curve_with_band(axis, part[part["place"] == place], "position", "probability", role, f"P({name})")
        ticks = range(0, table["position"].max() + 1, 2)
        axis.set(title=f"{setting}, {figures.AXES[orientation]}", ylim=(0, 1), xticks=ticks)
    figure.supxlabel("token position along the axis", fontsize=9)
    figure.supylabel("mean probability, background tokens", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def strip_scores(table: pd.DataFrame):
    """Strip score and agreement of the order probe beside its controls, a column of panels per setting; returns the
    figure. The range of each row ends where its values do.

    table: `background.score_rows` on one kind of background with columns setting, line (the axis, in readers' words)
    and probe (PROBES, in the order of the rows).
    """
    lines = list(figures.AXES.values())
    figure, axes = figures.panels(2, 3, height=2.1, sharex=True, sharey="row")
    for (upper, lower), setting in zip(axes.T, questions.SETTINGS, strict=True):
        part = table[table["setting"] == setting]
        figures.dots(upper, part, "probe", "score", "line", lines)
        part = part.drop(columns=["low", "high"]).rename(columns={"agreement_low": "low", "agreement_high": "high"})
        figures.dots(lower, part, "probe", "agreement", "line", lines)
        figures.level(lower, 1 / 3, "")
        upper.set(title=setting, xlim=(-0.5, table["probe"].nunique() - 0.5))
        lower.tick_params(axis="x", rotation=50)
    for row, highest in zip(axes, table[["high", "agreement_high"]].max(), strict=True):
        row[0].set_ylim(-0.02, np.clip(1.1 * highest, 0.4, 1.03))  # small scores would lie flat on a range up to 1
    axes[0, 0].set_ylabel("strip score")
    axes[1, 0].set_ylabel("agreement")
    figures.legend_below(figure, axes[0, 0])
    return figure


def readings(table: pd.DataFrame):
    """What the probe takes tokens in conflict for, and the same with its predictions shuffled; returns the figure.

    table: lines, tokens (object, background), reading (READINGS and the first two with `_shuffled`), value, low, high.
    """
    figure, axes = figures.panels(1, 2, height=2.6, sharey=True, width_ratios=(4, 6))
    for axis, name in zip(axes, ("object", "background"), strict=True):
        part = table[table["tokens"] == name].set_index("reading")
        figures.dots(axis, part.loc[list(READINGS)].reset_index(), "lines", "value", "reading", READINGS)
        for k, reading in enumerate(READINGS[:2]):
            ticks = part.loc[f"{reading}_shuffled", "value"]
            axis.plot(np.arange(len(ticks)) + 0.15 * (k - 1), ticks, "_", color=figures.GREY, ms=11, label="shuffled")
        axis.set(title=f"{name} tokens (n = {part['n'].max()} pictures)", ylim=(-0.02, 1.02), xlabel="")
        axis.tick_params(axis="x", labelsize=6.5)
    axes[0].set_ylabel("share of tokens in conflict")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles[1:], names[1:], loc="outside upper center", ncols=4)
    return figure


def sufficiency(table: pd.DataFrame):
    """Effect of every edit (column `edited`, in the order of the rows) by setting; returns the figure."""
    figure, axis = figures.panels(1, 1, height=2.7)
    figures.dots(axis, table, "edited", "effect", "setting", questions.SETTINGS)
    figures.level(axis, 0, "clean")
    figures.level(axis, 1, "counterfactual")
    axis.set(ylabel="effect", ylim=(-0.08, 1.12), xlabel="tokens from the counterfactual picture")
    axis.set_xlim(-0.4, table["edited"].nunique())
    figures.legend_below(figure, axis)
    return figure


def dose(table: pd.DataFrame, names: Mapping[str, str]):
    """Effect and share of flipped answers against the number of background tokens; returns the figure.

    table: region, tokens, effect with low and high, flipped with flipped_low and flipped_high. names: the regions to
    draw, with their labels.
    """
    figure, axes = figures.panels(1, 2, height=2.5, sharex=True, sharey=True)
    for region, label in names.items():
        part = table[table["region"] == region]
        role = DOSE_LOOKS.get(region, region)
        figures.curve_with_band(axes[0], part, "tokens", "effect", role, label)
        part = part.drop(columns=["low", "high"]).rename(columns={"flipped_low": "low", "flipped_high": "high"})
        figures.curve_with_band(axes[1], part, "tokens", "flipped", role, label)
    counts = sorted(table["tokens"].unique())
    for axis, label in zip(axes, ("effect (clean 0,\ncounterfactual 1)", "share of answers flipped"), strict=True):
        axis.set(xscale="symlog", ylim=(-0.05, 1.05), ylabel=label, xlabel="background tokens per strip (k)")
        axis.set_xticks(counts, counts)
        axis.minorticks_off()
    figures.level(axes[1], 0.5, "")
    place = axes[1].get_yaxis_transform()  # named at the left, where curves are low
    axes[1].text(0.02, 0.51, "half of the pairs", transform=place, fontsize=7, color=figures.GREY)
    figures.legend_below(figure, axes[0])
    return figure
