"""Figures of notebook 03 about components: heat maps with their null, causal checks, attention over the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from lib.analysis import statistics
from lib.artifact import figures
from lib.stimuli.grids import Grid
from lib.stimuli.token_sets import object_tokens

PALE, HATCH = "#EDEDED", "#B5B5B5"
MOST_NUMBERS = 12  # columns beyond which numbers no longer fit into cells

# title, design, toward, token, column of the table
PANELS = (
    ("last token, patched", "mirrored", "counterfactual", "last", "effect"),
    ("last token, direct path only", "mirrored", "counterfactual", "last", "direct"),
    ("reference's word, patched", "mirrored", "counterfactual", "reference", "effect"),
    ("last token: to the new answer", "five entities", "attribute", "last", "effect"),
    ("last token: to the line's other end", "five entities", "order", "last", "effect"),
    ("reference's word: to the new answer", "five entities", "attribute", "reference", "effect"),
)


def heat_maps(table: pd.DataFrame):
    """Effects on the logits of every component, layer by head, with the null drawn in; returns the figure.

    table: `components.table` of several designs, column `design`. Cells inside the null's band are grey and hatched.
    """
    table = table[table["scale"] == "logit"]
    layers = table["layer"].max() + 1
    figure, axes = figures.panels(2, 3, height=max(2.2, 0.26 * layers + 0.9), sharey=True)
    for axis, (title, design, toward, token, column) in zip(axes.flat, PANELS, strict=True):
        own = table[(table["design"] == design) & (table["toward"] == toward) & (table["token"] == token)]
        image = _heat_map(axis, own, column)
        axis.set_title(f"{title}\n({design}, n = {own['n'].max()})", fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer")
    axes[1, 1].set_xlabel("head; att., MLP: the layer's whole attention and MLP output")
    beyond = "both" if table[["effect", "direct"]].abs().max(axis=None) > 1.05 else "neither"
    figure.colorbar(image, ax=axes, shrink=0.6, extend=beyond, label="share of the way to that answer (logits)")
    null = Patch(facecolor=PALE, edgecolor=HATCH, hatch="////", label="within the 95 % band of the null, or below .01")
    figure.legend(handles=[null], loc="outside lower center")
    return figure


def _heat_map(axis, rows: pd.DataFrame, column: str):
    """One panel; the direct path has no null of its own, and only values below .01 are hatched there."""
    rows = rows.assign(column=rows["head"].where(rows["head"] >= 0, rows["head"].max() + 1 + (rows["site"] == "mlp")))
    values, beyond = (rows.pivot(index="layer", columns="column", values=v).to_numpy() for v in (column, "beyond_null"))
    shown = np.abs(values) >= 0.01 if column == "direct" else beyond.astype(bool)
    image = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    count = values.shape[1]
    for (layer, k), value in np.ndenumerate(values):
        if not shown[layer, k]:
            cell = {"facecolor": PALE, "edgecolor": HATCH, "hatch": "////", "linewidth": 0}
            axis.add_patch(Rectangle((k - 0.5, layer - 0.5), 1, 1, **cell))
        elif count <= MOST_NUMBERS:
            colour = "white" if abs(value) > 0.6 else "black"
            text = statistics.decimals(value).replace("0.", ".", 1)
            axis.text(k, layer, text, ha="center", va="center", fontsize=6, color=colour)
    axis.axvline(count - 2.5, color="black", linewidth=0.8)
    step = 1 if count <= MOST_NUMBERS else 4
    axis.set_xticks([*range(0, count - 2, step), count - 2, count - 1], [*range(0, count - 2, step), "att.", "MLP"])
    axis.set_yticks(range(0, len(values), 1 if len(values) <= MOST_NUMBERS else 4))
    return image


# title, column, and the rows that are shown: code, kind, source
CODES = (
    ("direction,\nfrom pictures", "effect", "direction", "question", "picture"),
    ("direction, from\nan empty canvas", "effect", "direction", "question", "empty canvas"),
    ("reference's place,\nreadable", "readable", "place", "both", "picture"),
    None,
    ("reference's place,\nfrom a picture", "effect", "place", "both", "picture"),
    ("the same, from\nan empty canvas", "effect", "place", "both", "empty canvas"),
    ("place in the\nline alone", "effect", "place", "order", "picture"),
    ("place on the\ncanvas alone", "effect", "place", "canvas", "picture"),
)


def text_codes(table: pd.DataFrame, words: dict[str, str]):
    """Codes on tokens of the question, token by slot, with the null drawn in; returns the figure.

    table: `lib.analysis.text_codes.table`. words: its names of tokens. Cells that the null explains are hatched, tokens
    that were not tried are empty.
    """
    table = table[table["axis"] == "all"]
    figure, axes = figures.panels(2, 4, height=1.9, sharex=True, sharey=True)
    for axis, panel in zip(axes.flat, CODES, strict=True):
        if panel is None:
            axis.set_axis_off()
            continue
        title, column, code, kind, source = panel
        own = table[(table["code"] == code) & (table["kind"] == kind) & (table["source"] == source)]
        axis.set_title(f"{title} (n = {own['n'].max() if len(own) else 0})", fontsize=6.5)
        image = _code_map(axis, own, column, list(words))
    for row in axes:
        row[0].set_yticks(range(len(words)), words.values(), fontsize=7)
    for axis in axes[1]:
        axis.set_xlabel("slot")
    figure.colorbar(image, ax=axes, shrink=0.7, extend="max", label="share of the way; readable: of pairs")
    null = Patch(facecolor=PALE, edgecolor=HATCH, hatch="////", label="no more than the null, or below .05")
    figure.legend(handles=[null], loc="outside lower center")
    return figure


def _code_map(axis, rows: pd.DataFrame, column: str, words: list[str]):
    """One panel; empty where the model answers too few pairs."""
    slots = sorted(rows["slot"].unique()) or [0]
    shape = {"index": words, "columns": slots}
    beyond = rows.assign(beyond=rows["carries"] if column == "effect" else rows["readable"] > rows["readable_null"])
    values, shown = (
        part.pivot(index="token", columns="slot", values=name).reindex(**shape).to_numpy(dtype=float)
        for part, name in ((rows, column), (beyond.assign(beyond=beyond["beyond"].astype(float)), "beyond"))
    )
    image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, k), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        if not shown[row, k]:
            cell = {"facecolor": PALE, "edgecolor": HATCH, "hatch": "////", "linewidth": 0}
            axis.add_patch(Rectangle((k - 0.5, row - 0.5), 1, 1, **cell))
        elif len(slots) <= MOST_NUMBERS:
            text = statistics.decimals(value).replace("0.", ".", 1).replace("1.00", "1")
            axis.text(k, row, text, ha="center", va="center", fontsize=6, color="white" if value < 0.6 else "black")
    axis.set_xticks(range(0, len(slots), 1 if len(slots) <= MOST_NUMBERS else 4))
    return image


def checks(together: pd.DataFrame, cut: pd.DataFrame):
    """Heads patched together, and heads cut off from the picture, against as many random others; returns the figure."""
    figure, axes = figures.panels(1, 2, height=2.5)
    patched = together[(together["token"] == "last") & (together["scale"] == "probability")]
    for axis, rows, value in zip(axes, (patched, cut[cut["token"] == "last"]), ("effect", "accuracy"), strict=True):
        for kind, role, label in (("top", "order", "strongest heads"), ("random", "random", "random other heads")):
            figures.curve_with_band(axis, rows[rows["kind"] == kind], "heads", value, role, label)
        every = rows[rows["kind"] == "all"].iloc[0]
        figures.level(axis, every[value], f"all {every['heads']} heads")
        ticks = sorted(rows.loc[rows["kind"] == "top", "heads"])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, ticks)
        axis.set(xlabel="number of heads", ylim=(-0.05, 1.12))
    axes[0].set(title=f"patched together (n = {patched['n'].max()})", ylabel="effect on the probabilities")
    axes[1].set(title=f"cut off from the picture (n = {cut['n'].max()})", ylabel="accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def attention_maps(
    pictures: Sequence[Image.Image], weights: Sequence[np.ndarray], names: Sequence[str], asked: np.ndarray, grid: Grid
):
    """Attention of heads over a clean and a mirrored picture; returns the figure.

    pictures: clean, mirrored. weights: for each picture [head, image_token]. asked: the tokens of the place that the
    question asks for, outlined.
    """
    figure, axes = figures.panels(2, len(names) + 1, height=1.9)
    inside = np.zeros(grid.side**2, dtype=bool)
    inside[asked] = True
    edges = figures.outline(inside.reshape(grid.side, grid.side)) * grid.pixels
    for row, picture, own, title in zip(axes, pictures, weights, ("clean", "mirrored"), strict=True):
        figures.show_scene(row[0], picture, {}, grid.side, grid.pixels, f"{title} picture")
        for axis, name, weight in zip(row[1:], names, own, strict=True):
            figures.show_scene(axis, picture, {}, grid.side, grid.pixels, f"{name}: {weight.max():.2f}")
            shade = np.zeros((grid.side, grid.side, 4))
            shade[..., 3] = 0.65 * (1 - weight / weight.max()).reshape(grid.side, grid.side)
            axis.imshow(shade, extent=(0, grid.canvas, grid.canvas, 0), interpolation="nearest")
        for axis in row:
            axis.add_collection(LineCollection(edges, edgecolor=figures.VERMILLION, linewidth=1.6))
    return figure


def asked_tokens(pair, grid: Grid) -> np.ndarray:
    """The image tokens of the place that a pair's question asks for."""
    return np.asarray(object_tokens(grid, pair.orientation, pair.clean.target))
