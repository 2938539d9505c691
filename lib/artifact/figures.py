"""One style for every figure and one way to save it.

A colour means the same role everywhere (Okabe-Ito palette, safe for colour-blind readers); line style and
marker say it once more, so figures survive grey print. Saving writes picture, print version and numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch, Rectangle

from lib import files, places
from lib.artifact import storage
from lib.engine import embedded

WIDTH = 7.0  # inches: the text width of a page

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"


# what readers call the two orientations
AXES = {"horizontal": "left-right", "vertical": "above-below"}


@dataclass(frozen=True)
class Look:
    """How a role is drawn."""

    colour: str
    line: str | tuple = "-"
    marker: str = "o"


DOTS = (0, (1, 1.2))
LONG = (0, (6, 1.5))
ROLES = {
    # answers and runs
    "clean": Look(BLACK, "-", "o"),
    "counterfactual": Look(VERMILLION, "--", "s"),
    "order": Look(BLUE, "--", "s"),
    "attribute": Look(ORANGE, "-.", "^"),
    "none": Look(BLACK, "-", "o"),
    # regions of image tokens
    "object": Look(VERMILLION, "-", "s"),
    "strip": Look(BLUE, "--", "D"),
    "background_strip": Look(SKY, LONG, "v"),
    "middle": Look(PURPLE, "-.", "P"),
    "background": Look(GREEN, LONG, "v"),
    # controls, always grey and dotted
    "random": Look(GREY, DOTS, "x"),
    "shuffled": Look(GREY, "-.", "+"),
    "control": Look(GREY, "--", "x"),
    "held_out": Look(BLUE, "-", "o"),
    # what enhancement does to answers
    "repaired": Look(BLUE, "-", "^"),
    "broken": Look(VERMILLION, "--", "v"),
    # where order comes from
    "encoder": Look(BLUE, "-", "o"),
    "backbone": Look(ORANGE, "--", "s"),
    # directions and models
    "left": Look(BLUE, "-", "<"),
    "right": Look(SKY, "--", ">"),
    "above": Look(VERMILLION, "-.", "^"),
    "below": Look(ORANGE, LONG, "v"),
    **{model.name: Look(model.colour, model.line, model.marker) for model in embedded.MODELS},
}
OTHERS = [Look(GREEN, "-", "o"), Look(PURPLE, "--", "s"), Look(BLUE, "-.", "^"), Look(ORANGE, LONG, "D")]


def look(role: str, number: int = 0) -> Look:
    """The look of a role; for a word without one, the `number`-th of the spare looks."""
    return ROLES.get(role, OTHERS[number % len(OTHERS)])


def use_style() -> None:
    """Set the style of figures and tables; called once at the top of every notebook."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="paper", style="ticks", font="DejaVu Sans")  # the font that comes with matplotlib
    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.labelsize": 9,
            "axes.titlesize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 4,
            "hatch.linewidth": 0.6,
            "image.cmap": "cividis",  # even steps of lightness, in colour and in grey
            "pdf.fonttype": 42,  # text stays text
        }
    )


def panels(rows: int = 1, columns: int = 1, height: float = 2.3, width: float = WIDTH, **options):
    """A figure of page width with rows x columns axes, each row `height` inches; returns figure and axes."""
    return plt.subplots(rows, columns, figsize=(width, height * rows), **options)


def curve_with_band(ax, data: pd.DataFrame, x: str, y: str, role: str, label: str | None = None) -> None:
    """One curve with the interval of columns `low` and `high` as a band, in the look of `role`."""
    data, style = data.sort_values(x), look(role)
    step = max(1, len(data) // 12)  # a marker on every point of a long curve hides it
    name = role.replace("_", " ") if label is None else label
    drawn = {"color": style.colour, "linestyle": style.line, "marker": style.marker, "markevery": step}
    ax.plot(data[x], data[y], label=name, **drawn)
    ax.fill_between(data[x], data["low"], data["high"], color=style.colour, alpha=0.18, linewidth=0)


def level(ax, value: float, text: str) -> None:
    """A thin horizontal line such as chance or a baseline, named at its right end."""
    ax.axhline(value, color=GREY, linewidth=0.8, linestyle=DOTS, zorder=0)
    ax.annotate(text, (1, value), (-1, 1), ("axes fraction", "data"), textcoords="offset points", ha="right",
                va="bottom", fontsize=7, color=GREY)  # fmt: skip


def heat_map(ax, values):
    """A value from 0 to 1 per image token as an N x N map, row 0 on top; returns the image, for a colour bar."""
    values = np.asarray(values, dtype=float)
    if values.ndim == 1:
        side = round(len(values) ** 0.5)
        values = values.reshape(side, side)
    image = ax.imshow(values, vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set(xticks=[0, values.shape[1] - 1], yticks=[0, values.shape[0] - 1])
    sns.despine(ax=ax, left=True, bottom=True)
    return image


def show_scene(ax, image, token_sets: dict, side: int, pixels: int, title: str | None = None) -> None:
    """A scene with sets of image tokens drawn over it.

    token_sets: name -> flat indices r * side + c; a name that is a role gets its look. `side` tokens of
    `pixels` pixels make the picture's edge.
    """
    extent = (0, side * pixels, side * pixels, 0)
    ax.imshow(np.asarray(image), extent=extent, interpolation="nearest")
    handles = []
    for number, (name, tokens) in enumerate(token_sets.items()):
        handles.append(mark(ax, tokens, side, pixels, look(name, number)))
        handles[-1].set_label(name.replace("_", " "))
    ax.set(xticks=[], yticks=[], title=title, xlim=extent[:2], ylim=extent[2:])
    for spine in ax.spines.values():
        spine.set(visible=True, color=GREY, linewidth=0.6)
    if handles:
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, handlelength=1.6)


def mark(ax, tokens: Sequence[int], side: int, pixels: int, style: Look, hatch: str = "") -> Patch:
    """A set of image tokens (flat indices) tinted, hatched and outlined over a picture; returns a patch for legends."""
    mask = np.zeros(side * side, dtype=bool)
    mask[np.asarray(tokens, dtype=int)] = True
    mask, fill = mask.reshape(side, side), mpl.colors.to_rgba(style.colour, 0.25)
    ax.imshow(mask[..., None] * np.array(fill), extent=(0, side * pixels, side * pixels, 0), interpolation="nearest")
    if hatch:
        for row, column in np.argwhere(mask):
            cell = Rectangle((column * pixels, row * pixels), pixels, pixels, hatch=hatch, linewidth=0)
            cell.set(facecolor="none", edgecolor=(*fill[:3], 0.55))
            ax.add_patch(cell)
    border = {"edgecolor": style.colour, "linestyle": style.line, "linewidth": 1.6}
    ax.add_collection(LineCollection(outline(mask) * pixels, **border))
    return Patch(facecolor=fill, hatch=hatch, **border)


def gallery(pictures: dict, columns: int = 4, frame: bool = False):
    """A page of pictures with their titles, row by row; frame: a thin line around each. Returns the figure."""
    rows = -(-len(pictures) // columns)
    figure, axes = panels(rows, columns, height=WIDTH / columns + 0.15, squeeze=False)
    for axis in axes.flat[len(pictures) :]:
        axis.remove()
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(np.asarray(picture), interpolation="nearest")
        axis.set_title(title.strip(), fontsize=7)
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=frame, color=GREY, linewidth=0.6)
    return figure


def legend_below(figure, ax, columns: int = 0, **names: str) -> None:
    """The legend of `ax` below the whole figure, in one line or so many columns; `names` renames labels, else _ becomes
    a space."""
    handles, labels = ax.get_legend_handles_labels()
    shown = [names.get(label, label.replace("_", " ")) for label in labels]
    figure.legend(handles, shown, loc="outside lower center", ncols=columns or len(shown))


def dots(ax, data: pd.DataFrame, x: str, y: str, hue: str, hues: Sequence[str] = ()) -> None:
    """A dot with its interval (columns `low`, `high`) for every x and hue, hues side by side in their looks.

    hues: their order, default that of appearance; name it where panels share a legend.
    """
    names, hues = list(dict.fromkeys(data[x])), list(hues) or list(dict.fromkeys(data[hue]))
    for number, name in enumerate(hues):
        part, style = data[data[hue] == name], look(name, number)
        places = [names.index(value) + (number - (len(hues) - 1) / 2) * 0.15 for value in part[x]]
        bars = np.clip([part[y] - part["low"], part["high"] - part[y]], 0, None)
        ax.errorbar(places, part[y], bars, fmt=style.marker, color=style.colour, elinewidth=1, label=name)
    ax.set_xticks(range(len(names)), names)


def outline(mask: np.ndarray) -> np.ndarray:
    """The edges between cells inside and outside a mask, as segments [[x, y], [x, y]] in units of cells."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    flat = np.stack([np.stack([columns, rows], -1), np.stack([columns + 1, rows], -1)], 1)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([columns, rows], -1), np.stack([columns, rows + 1], -1)], 1)
    return np.concatenate([flat, upright]).astype(float)


def table(df: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A copy for display, floats rounded and never -0, rows that are only numbered without their numbers; the saved
    files hold six digits."""
    out = df.round(digits)
    if isinstance(out.index, pd.RangeIndex):
        out.index = [""] * len(out)
    floats = out.select_dtypes("float").columns
    out[floats] = out[floats] + 0.0
    return out


def save(fig, id: str, data: pd.DataFrame, model: str = "reference", seed: int = 0, folder=None, **parameters) -> None:
    """Write figures/<id>.png, .pdf and the figure's numbers as <id>.csv among the results about a model.

    folder: another place, for figures about several models.
    Equal figures give equal bytes: no time stamps inside.
    Returns nothing, so that a cell ending in it shows the figure only.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", id):
        raise ValueError(f"figure id {id!r}: small letters, digits, - and _ only")
    if data.empty:
        raise ValueError(f"figure {id!r} has no data to save")
    folder = places.outputs(model) / "figures" if folder is None else folder
    about = f"model {places.model_name(model)}; numbers in {id}.csv"
    metadata = {
        "png": {"Title": id, "Description": about},
        "pdf": {"Title": id, "Subject": about, "CreationDate": None},
    }
    for kind, text in metadata.items():
        with files.atomic(folder / f"{id}.{kind}") as temporary:
            fig.savefig(temporary, metadata=text)
    storage.write_csv(data, folder / f"{id}.csv", storage.provenance(model, seed, figure=id, **parameters))
