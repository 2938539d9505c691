"""Figures of notebook 02: the nine edits on a picture, fingerprints, doses, ladders, models side by side."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection

from lib.analysis import fingerprint, ladder, position_schemes
from lib.artifact import figures
from lib.artifact.figures import AXES
from lib.patching.edits import Interchange
from lib.stimuli.grids import Grid

RIVAL_COLOURS = {"O": "#E69F00", "S": "#0072B2", "B": "#009E73", "P": "#D55E00"}
RIVAL_MARKERS = {"O": "s", "S": "D", "B": "o", "P": "^"}
FROM_OTHER, FROM_OWN = "#CC79A7", "#E69F00"  # where an edit takes its vectors: the mirrored picture, the picture itself


def edits(clean, counterfactual, named: dict[int, Interchange], grid: Grid):
    """Both pictures of a pair, and the clean one once for every edit with the tokens it writes; returns the figure.

    Arrows join two regions that are crossed or change places; without an arrow a region takes the vectors of the same
    tokens of the other picture.
    """
    figure, axes = figures.panels(3, 4, height=2.0)
    for ax, picture, title in zip(axes[:, 0], (clean, counterfactual), ("clean", "mirror"), strict=False):
        figures.show_scene(ax, picture, {}, grid.side, grid.pixels, title)
    axes[2, 0].axis("off")
    for colour, text, height in (
        (FROM_OTHER, "vectors of the mirror picture", 0.7),
        (FROM_OWN, "vectors of the clean one itself", 0.4),
    ):
        axes[2, 0].text(0.1, height, text, color=colour, weight="bold", transform=axes[2, 0].transAxes)
    for ax, (number, edit) in zip(axes[:, 1:].flat, named.items(), strict=True):
        figures.show_scene(ax, clean, {}, grid.side, grid.pixels)
        ax.set_title(
            f"{number}: {fingerprint.EDITS[number]}".replace(" change", "\nchange")
            .replace(", in", ",\nin")
            .replace(" crossed", "\ncrossed"),
            fontsize=7,
        )
        _tint(ax, edit, grid)
    return figure


def _tint(ax, edit: Interchange, grid: Grid) -> None:
    """The tokens an edit writes as tinted cells, and a double arrow where two regions trade."""
    colour, extent = FROM_OWN if edit.own else FROM_OTHER, (0, grid.canvas, grid.canvas, 0)
    mask = np.zeros(grid.side**2, dtype=bool)
    mask[edit.targets] = True
    tint = np.zeros((grid.side, grid.side, 4))
    tint[mask.reshape(grid.side, grid.side)] = (*mpl.colors.to_rgb(colour), 0.25)
    ax.imshow(tint, extent=extent, interpolation="nearest")
    border = figures.outline(mask.reshape(grid.side, grid.side)) * grid.pixels
    ax.add_collection(LineCollection(border, edgecolor=colour, linewidth=2.0))
    if not np.array_equal(edit.targets, edit.sources):
        half = len(edit.targets) // 2
        ends = [_centre(edit.targets[part], grid) for part in (slice(half), slice(half, None))]
        ax.annotate("", *ends, arrowprops={"arrowstyle": "<->", "color": "black", "lw": 1.2})


def _centre(tokens: np.ndarray, grid: Grid) -> tuple[float, float]:
    row, column = np.divmod(tokens, grid.side)
    return ((column.mean() + 0.5) * grid.pixels, (row.mean() + 0.5) * grid.pixels)


def rivals(table: pd.DataFrame):
    """The four rivals' effects per setting, centred and shifted lines, a panel per axis; returns the figure."""
    figure, axes = figures.panels(1, 2, height=2.8, sharey=True)
    kinds = list(dict.fromkeys(zip(table["setting"], table["centred"], strict=True)))
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        own = table[table["orientation"] == axis]
        _rival_dots(ax, own, [own[(own["setting"] == s) & (own["centred"] == c)] for s, c in kinds])
        ax.set_xticks(range(len(kinds)), [f"{s}\n{'centred' if c else 'shifted'}" for s, c in kinds], fontsize=7)
        ax.set(title=named, ylim=(-0.15, 1.15))
    axes[0].set_ylabel("effect at slot 0")
    figures.legend_below(figure, axes[0], 2, **fingerprint.RIVAL_NAMES)
    return figure


def models(table: pd.DataFrame):
    """The same side by side for models (column `model`), in the order of the rows; returns the figure."""
    names = list(dict.fromkeys(table["model"]))
    figure, axes = figures.panels(2, 1, height=1.9, sharex=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        own = table[table["orientation"] == axis]
        _rival_dots(ax, own, [own[own["model"] == name] for name in names])
        ax.set(title=named, ylim=(-0.15, 1.15), ylabel="effect at slot 0")
    axes[1].set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7)
    figures.legend_below(figure, axes[0], 2, **fingerprint.RIVAL_NAMES)
    return figure


def _rival_dots(ax, table: pd.DataFrame, groups: Iterable[pd.DataFrame]) -> None:
    groups = list(groups)
    for shift, rival in zip((-0.24, -0.08, 0.08, 0.24), fingerprint.RIVALS, strict=True):
        rows = [group[group["rival"] == rival] for group in groups]
        x = [place + shift for place, row in enumerate(rows) for _ in range(len(row))]
        row = pd.concat(rows)
        bars = np.clip([row["value"] - row["low"], row["high"] - row["value"]], 0, None)
        style = {"fmt": RIVAL_MARKERS[rival], "color": RIVAL_COLOURS[rival], "elinewidth": 1, "ms": 4}
        ax.errorbar(x, row["value"], bars, label=rival, **style)
    for height in (0, 0.5, 1):
        figures.level(ax, height, "")


def slots(table: pd.DataFrame, last: str = "", xlabel: str = "slot"):
    """Each rival's own edit over slots, a panel per axis; last: a name for the last slot. Returns the figure."""
    figure, axes = figures.panels(1, 2, height=2.3, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        for rival, edit in fingerprint.RIVALS.items():
            own = table[(table["orientation"] == axis) & (table["edit"] == edit)].sort_values("slot")
            style = {"color": RIVAL_COLOURS[rival], "marker": RIVAL_MARKERS[rival], "label": rival}
            ax.plot(own["slot"], own["effect"], **style)
            ax.fill_between(own["slot"], own["low"], own["high"], color=RIVAL_COLOURS[rival], alpha=0.18, linewidth=0)
        ticks = sorted(table["slot"].unique())
        ax.set(title=named, xlabel=xlabel, ylim=(-0.15, 1.15), xticks=ticks)
        if last:
            ax.set_xticklabels([*map(str, ticks[:-1]), last])
    axes[0].set_ylabel("effect")
    figures.legend_below(figure, axes[0], 2, **fingerprint.RIVAL_NAMES)
    return figure


def dose(table: pd.DataFrame):
    """Effect against the number of background tokens taken from the mirror picture, random ones and whole strips;
    returns the figure."""
    figure, axes = figures.panels(1, 2, height=2.2, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        for region, role, label in (("random", "random", "random tokens"), ("strips", "strip", "whole strips")):
            own = table[(table["orientation"] == axis) & (table["region"] == region)]
            figures.curve_with_band(ax, own, "tokens", "effect", role, label)
        ax.set(title=named, xlabel="background tokens from the mirror picture", ylim=(-0.15, 1.15))
    axes[0].set_ylabel("effect at slot 0")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def steps(table: pd.DataFrame):
    """The ladder: order among the two named answers, and answers that name neither, by step; returns the figure."""
    figure, axes = figures.panels(1, 2, height=2.4, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        own = table[table["orientation"] == axis]
        for number, (setting, cell) in enumerate(own.groupby("setting", sort=False)):
            for measure, line, what in (("named", "-", "order"), ("names_neither", ":", "names neither")):
                rows = cell[cell["measure"] == measure].set_index("step").reindex(ladder.STEPS)
                look = figures.look(setting, number)
                bars = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
                style = {"color": look.colour, "marker": look.marker, "linestyle": line, "elinewidth": 1}
                x = np.arange(len(rows)) + 0.06 * (number - 1)
                ax.errorbar(x, rows["value"], bars, label=f"{setting}: {what}", **style)
        figures.level(ax, 0, "no order")
        ax.set(title=named, ylim=(-0.35, 1.15))
        ax.set_xticks(range(len(ladder.STEPS)), [step.replace(" ", "\n") for step in ladder.STEPS])
    axes[0].set_ylabel("order, share")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def positions(table: pd.DataFrame):
    """Order among the two named answers with image tokens at other positions, intact and after the ordering ablation,
    a panel per axis; returns the figure. table: `position_schemes.summary`."""
    figure, axes = figures.panels(1, 2, height=2.4, sharey=True)
    schemes = position_schemes.SCHEMES
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        own = table[(table["orientation"] == axis) & (table["measure"] == "named")]
        for step, fill, shift in ((ladder.STEPS[0], "none", -0.1), (ladder.STEPS[-1], "full", 0.1)):
            rows = own[own["step"] == step].set_index("scheme").reindex(schemes)
            bars = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
            style = {"fmt": "o", "color": RIVAL_COLOURS["P"], "elinewidth": 1, "fillstyle": fill}
            label = "intact" if step == ladder.STEPS[0] else "after the ablation"
            ax.errorbar(np.arange(len(rows)) + shift, rows["value"], bars, label=label, **style)
        figures.level(ax, 0, "no order")
        ax.set(title=named, ylim=(-1.1, 1.15))
        ax.set_xticks(range(len(schemes)), schemes, rotation=35, ha="right")
    axes[0].set_ylabel("order, share")
    figures.legend_below(figure, axes[0])
    return figure


def after_ablation(table: pd.DataFrame):
    """Accuracy per axis after the ablation for models and checkpoints (column model), with the floor of 1/2; returns
    the figure. table: model, setting, orientation, accuracy, low, high."""
    names = list(dict.fromkeys(table["model"]))
    figure, axes = figures.panels(1, 2, height=2.4, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        for number, setting in enumerate(dict.fromkeys(table["setting"])):
            own = table[(table["orientation"] == axis) & (table["setting"] == setting)]
            look = figures.look(setting, number)
            x = [names.index(name) + 0.15 * (number - 1) for name in own["model"]]
            bars = np.clip([own["accuracy"] - own["low"], own["high"] - own["accuracy"]], 0, None)
            style = {"fmt": look.marker, "color": look.colour, "elinewidth": 1, "label": setting}
            ax.errorbar(x, own["accuracy"], bars, **style)
        figures.level(ax, 0.5, "floor")
        ax.set(title=named, ylim=(-0.05, 1.05))
        ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7)
    axes[0].set_ylabel("correct after the ablation")
    figures.legend_below(figure, axes[0])
    return figure
