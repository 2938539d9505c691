"""Figures of notebook 02: the nine edits on a picture, fingerprints, doses, ladders, models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from lib.analysis import fingerprint, ladder, position_schemes
from lib.artifact import figures
from lib.artifact.figures import AXES
from lib.engine import embedded
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
    figures.mark(ax, edit.targets, grid.side, grid.pixels, figures.Look(FROM_OWN if edit.own else FROM_OTHER))
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
        groups = [own[(own["setting"] == s) & (own["centred"] == c)] for s, c in kinds]
        _rival_dots(ax, range(len(kinds)), groups)
        labels = [
            f"{s}\n{'centred' if c else 'shifted'}\nn = {group['n'].iloc[0]}"
            for (s, c), group in zip(kinds, groups, strict=True)
        ]
        ax.set_xticks(range(len(kinds)), labels, fontsize=7)
        ax.set(title=named, ylim=(-0.15, 1.15))
    axes[0].set_ylabel("effect at slot 0")
    figures.legend_below(figure, axes[0], 2, **_legend_names())
    return figure


def models(table: pd.DataFrame):
    """The same side by side for models (column `model`), in the order of the rows, the planted ones apart; returns the
    figure."""
    names = list(dict.fromkeys(table["model"]))
    places = _apart(names, [name in embedded.PLANTED for name in names])
    figure, axes = figures.panels(2, 1, height=1.9, sharex=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        own = table[table["orientation"] == axis]
        _rival_dots(ax, places, [own[own["model"] == name] for name in names])
        ax.set(title=_with_pairs(named, own, " a model"), ylim=(-0.15, 1.15), ylabel="effect at slot 0")
    axes[1].set_xticks(places, names, rotation=35, ha="right", fontsize=7)
    _over_planted(axes[0], names, places)
    figures.legend_below(figure, axes[0], 2, **_legend_names())
    return figure


def _with_pairs(title: str, table: pd.DataFrame, of: str = "") -> str:
    """A panel's title with the number of pairs behind its points."""
    return f"{title} (n = {' or '.join(map(str, sorted(table['n'].unique(), reverse=True)))} pairs{of})"


def _legend_names(names: dict[str, str] = fingerprint.RIVAL_NAMES) -> dict[str, str]:
    return {rival: f"{rival}: {name}" for rival, name in names.items()}


def _apart(names: list[str], group: Sequence[object]) -> list[float]:
    """Where to draw each of `names`: one after another, with a gap where the group changes."""
    gaps = np.cumsum([0, *(0.8 * (here != before) for before, here in zip(group, group[1:], strict=False))])
    return list(np.arange(len(names)) + gaps)


def _over_planted(ax, names: list[str], places: list[float]) -> None:
    """The word "planted" above the models in which the source of order is known by construction."""
    own = [place for name, place in zip(names, places, strict=True) if name in embedded.PLANTED]
    if own:
        line = {"color": figures.GREY, "linewidth": 0.8, "clip_on": False, "transform": ax.get_xaxis_transform()}
        ax.plot([own[0] - 0.4, own[-1] + 0.4], [1.02, 1.02], **line)
        position = {"xy": (np.mean(own), 1.02), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate("planted", xytext=(0, 1), ha="center", va="bottom", fontsize=7, color=figures.GREY, **position)


def _named_level(axes, value: float, text: str) -> None:
    """A thin line through all panels, named outside of the last one, where no point can lie under the word."""
    for ax in axes:
        figures.level(ax, value, "")
    position = {"xy": (1.01, value), "xycoords": ("axes fraction", "data")}
    axes[-1].annotate(text, ha="left", va="center", fontsize=7, color=figures.GREY, **position)


def _legend(figure, axes, note: str = "") -> None:
    """What is drawn in any of the panels, in one line below the figure; note: lines above it."""
    drawn = [zip(*reversed(ax.get_legend_handles_labels()), strict=True) for ax in axes]
    handles = {label: handle for each in reversed(drawn) for label, handle in each}
    place = {"loc": "outside lower center", "ncols": len(handles), "title": note or None, "title_fontsize": 7}
    figure.legend(list(handles.values()), list(handles), **place)


def _rival_dots(ax, places: Iterable[float], groups: Iterable[pd.DataFrame]) -> None:
    groups, places = list(groups), list(places)
    for shift, rival in zip((-0.24, -0.08, 0.08, 0.24), fingerprint.RIVALS, strict=True):
        rows = [group[group["rival"] == rival] for group in groups]
        x = [place + shift for place, row in zip(places, rows, strict=True) for _ in range(len(row))]
        row = pd.concat(rows)
        bars = np.clip([row["value"] - row["low"], row["high"] - row["value"]], 0, None)
        style = {"fmt": RIVAL_MARKERS[rival], "color": RIVAL_COLOURS[rival], "elinewidth": 1, "ms": 4}
        ax.errorbar(x, row["value"], bars, label=rival, **style)
    for height in (0, 0.5, 1):
        figures.level(ax, height, "")


def slots(table: pd.DataFrame, last: str = "", xlabel: str = "slot", names: dict[str, str] = fingerprint.RIVAL_NAMES):
    """Each rival's own edit over slots, a panel per axis; last: a name for the last slot; names: of the rivals. Returns
    the figure."""
    figure, axes = figures.panels(1, 2, height=2.3, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        for rival, edit in fingerprint.RIVALS.items():
            own = table[(table["orientation"] == axis) & (table["edit"] == edit)].sort_values("slot")
            style = {"color": RIVAL_COLOURS[rival], "marker": RIVAL_MARKERS[rival], "label": rival}
            ax.plot(own["slot"], own["effect"], **style)
            ax.fill_between(own["slot"], own["low"], own["high"], color=RIVAL_COLOURS[rival], alpha=0.18, linewidth=0)
        ticks = sorted(table["slot"].unique())
        ax.set(
            title=_with_pairs(named, table[table["orientation"] == axis]),
            xlabel=xlabel,
            ylim=(-0.15, 1.15),
            xticks=ticks,
        )
        if last:
            ax.set_xticklabels([*map(str, ticks[:-1]), last])
    axes[0].set_ylabel("effect")
    figures.legend_below(figure, axes[0], 2, **_legend_names(names))
    return figure


def dose(table: pd.DataFrame):
    """Effect against the number of background tokens taken from the mirror picture, random ones and whole strips;
    returns the figure."""
    figure, axes = figures.panels(1, 2, height=2.2, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        for region, role, label in (("random", "random", "random tokens"), ("strips", "strip", "whole strips")):
            own = table[(table["orientation"] == axis) & (table["region"] == region)]
            figures.curve_with_band(ax, own, "tokens", "effect", role, label)
        here = table[table["orientation"] == axis]
        ax.set(title=_with_pairs(named, here), xlabel="background tokens from the mirror picture", ylim=(-0.15, 1.15))
    axes[0].set_ylabel("effect at slot 0")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def steps(table: pd.DataFrame):
    """The ladder: order among the two candidates, and answers that name neither, by step; returns the figure."""
    figure, axes = figures.panels(1, 2, height=2.4, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        own = table[table["orientation"] == axis]
        for number, (setting, cell) in enumerate(own.groupby("setting", sort=False)):
            for measure, line, what in (("named", "-", "order among the two"), ("names_neither", ":", "names neither")):
                rows = cell[cell["measure"] == measure].set_index("step").reindex(ladder.STEPS)
                look = figures.look(setting, number)
                bars = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
                style = {"color": look.colour, "marker": look.marker, "linestyle": line, "elinewidth": 1}
                x = np.arange(len(rows)) + 0.06 * (number - 1)
                ax.errorbar(x, rows["value"], bars, label=f"{setting}: {what}", **style)
        ax.set(title=_with_pairs(named, own), ylim=(min(-0.35, table["low"].min() - 0.05), 1.15))
        ax.set_xticks(range(len(ladder.STEPS)), [step.replace(" ", "\n") for step in ladder.STEPS])
    _named_level(axes, 0, "no\norder")
    axes[0].set_ylabel("order (-1..1), share (0..1)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def positions(table: pd.DataFrame):
    """Order among the two candidates with image tokens at other positions, intact and after the ordering ablation, a
    panel per axis; grey where most answers name neither candidate. Returns the figure. table:
    `position_schemes.summary`."""
    figure, axes = figures.panels(1, 2, height=2.4, sharey=True)
    schemes = list(position_schemes.SCHEMES)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        own = table[table["orientation"] == axis]
        for label, shift, rows, style in _before_and_after(own):
            bars = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
            x = [schemes.index(scheme) + shift for scheme in rows["scheme"]]
            if len(rows):
                ax.errorbar(x, rows["value"], bars, label=label, elinewidth=1, **style)
        ax.set(title=_with_pairs(named, own[own["measure"] == "named"]), ylim=(-1.1, 1.15))
        ax.set_xticks(range(len(schemes)), schemes, rotation=35, ha="right")
    _named_level(axes, 0, "no\norder")
    axes[0].set_ylabel("order among the two (-1..1)")
    _legend(figure, axes)
    return figure


def _before_and_after(table: pd.DataFrame):
    """Label, shift, rows and look: the intact picture, the ablated one, and the ablated one where the model is
    confused."""
    wide = table.pivot(index=["scheme", "step"], columns="measure", values="value")
    confused = {key for key, share in wide["names_neither"].items() if share > 1 - position_schemes.NAMED}
    own = table[table["measure"] == "named"]
    last = own["step"] == ladder.STEPS[-1]
    grey = pd.Series([key in confused for key in zip(own["scheme"], own["step"], strict=True)], own.index)
    colour = RIVAL_COLOURS["P"]
    yield "intact", -0.1, own[~last], {"fmt": "o", "color": colour, "fillstyle": "none"}
    yield "after the ablation", 0.1, own[last & ~grey], {"fmt": "o", "color": colour}
    yield "after the ablation, most answers name neither", 0.1, own[last & grey], {"fmt": "x", "color": figures.GREY}


def after_ablation(table: pd.DataFrame):
    """Accuracy per axis after the ablation for models and checkpoints (column model), with the floor of 1/2; returns
    the figure. Hollow: most answers name neither candidate (not counted for true checkpoints).

    table: model, setting, orientation, total, accuracy, low, high, names_neither, intact, reading; true checkpoints
    first. Those that are not readable because they do not do the task intact are named below the figure.
    """
    left_out = table[table["reading"] == "not readable"]
    table = table.drop(left_out.index)
    names = list(dict.fromkeys(table["model"]))
    true = set(table.loc[table["names_neither"].isna(), "model"])
    places = dict(zip(names, _apart(names, [(n in true, n in embedded.PLANTED) for n in names]), strict=True))
    figure, axes = figures.panels(1, 2, height=3.3, sharey=True)
    for ax, (axis, named) in zip(axes, AXES.items(), strict=True):
        for number, setting in enumerate(dict.fromkeys(table["setting"])):
            own = table[(table["orientation"] == axis) & (table["setting"] == setting)]
            _accuracies(ax, own, places, figures.look(setting, number), setting, 0.2 * (number - 1))
        ax.set_title(named, pad=12)
        ax.set_ylim(-0.05, 1.05)
        ax.set_xticks(list(places.values()), names, rotation=60, ha="right", fontsize=6)
        _over_planted(ax, names, list(places.values()))
    _named_level(axes, 0.5, "floor")
    axes[0].set_ylabel("correct after the ablation")
    _legend(figure, axes, _what_stands_there(table, left_out))
    return figure


def _what_stands_there(table: pd.DataFrame, left_out: pd.DataFrame) -> str:
    """Settings and n of both kinds of models, and the checkpoints that are not drawn, with their intact accuracy."""
    own, true = table[table["names_neither"].notna()], table[table["names_neither"].isna()]
    parts = [
        f"{kind}: {', '.join(cell['setting'].unique())}; "
        f"n = {' or '.join(map(str, sorted(cell['total'].unique())))} questions a point"
        for kind, cell in (("true checkpoints", true), ("embedded models", own))
        if len(cell)
    ]
    for name, cell in left_out.groupby("model", sort=False):
        least, most = cell["intact"].min(), cell["intact"].max()
        parts.append(f"{name} left out: correct {least:.2f} to {most:.2f} before the ablation, too low to say anything")
    return "\n".join(parts)


def _accuracies(ax, rows: pd.DataFrame, places: dict[str, float], look, setting: str, shift: float) -> None:
    """The dots of one setting, hollow ones where the model is confused; only true checkpoints have several settings."""
    for confused in (False, True):
        own = rows[(rows["names_neither"] > 1 - position_schemes.NAMED) == confused]
        x = [places[row.model] + shift * np.isnan(row.names_neither) for row in own.itertuples()]
        bars = np.clip([own["accuracy"] - own["low"], own["high"] - own["accuracy"]], 0, None)
        style = {"fmt": look.marker, "color": look.colour, "elinewidth": 1, "ms": 4}
        filled = (
            {"fillstyle": "none", "label": f"{setting}, most answers name neither"} if confused else {"label": setting}
        )
        if len(own):
            ax.errorbar(x, own["accuracy"], bars, **style, **filled)
