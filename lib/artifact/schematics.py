"""Schematics: what an intervention does, drawn from a real pair before it is run (floor 4: plots, no models).

Three kinds. `sources` shows pictures and, tinted, where the vectors of their image tokens come from. `runs` shows a
picture and its question as a row of tokens, a line of dots per token (a dot a slot), and arrows for what is written,
cut off or scaled. `amplified` shows vectors before and after their part along a direction is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch
from PIL import Image
from torch import Tensor

from lib.analysis import ladder
from lib.artifact import figures
from lib.artifact.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, Look
from lib.patching.edits import Interchange
from lib.stimuli.grids import Grid
from lib.stimuli.pairs import Pair
from lib.stimuli.questions import Item, Picture, SideItem
from lib.stimuli.token_sets import PARTS, background, part_tokens

EMPTY, OWN_PLACE, MIDDLE = "the empty canvas", "its entity alone, own place", "its entity alone, in the middle"
SIDES = {  # of the mirror picture
    axis: tuple(f"the mirror picture's {side}" for side in sides)
    for axis, sides in (("horizontal", ("left", "right")), ("vertical", ("top", "bottom")))
}
SOURCES = {  # where an image token's vector comes from: colour and hatching
    EMPTY: (GREY, "////"),
    OWN_PLACE: (BLUE, "...."),
    MIDDLE: (ORANGE, "xxxx"),
    **{first: (PURPLE, "\\\\\\\\") for first, _ in SIDES.values()},
    **{second: (GREEN, "////") for _, second in SIDES.values()},
}

# --- where image tokens come from -----------------------------------------------------------------------------


def sources(scenes: dict[str, tuple[Image.Image, dict]], grid: Grid):
    """Pictures in a row, their tokens tinted by where their vectors come from; returns the figure.

    scenes: title -> picture and its sets of tokens, {a name of `SOURCES`: flat indices}. Tokens in no set keep theirs.
    """
    figure, axes = figures.panels(1, len(scenes), height=2.2, squeeze=False)
    used = {}
    for ax, (title, (picture, sets)) in zip(axes[0], scenes.items(), strict=True):
        figures.show_scene(ax, picture, {}, grid.side, grid.pixels, title)
        for name, tokens in sets.items():
            if len(tokens):
                colour, hatch = SOURCES[name]
                used[name] = figures.mark(ax, tokens, grid.side, grid.pixels, Look(colour), hatch)
    handles = [Patch(facecolor="white", edgecolor=BLACK, label="its own"), *used.values()]
    labels = ["its own", *used]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="an image token's vector is")
    return figure


def ladder_steps(pair: Pair, grid: Grid):
    """The ladder's steps on a pair's clean picture; returns the figure."""
    rest = background(grid, pair.orientation)
    objects = np.setdiff1d(np.arange(grid.side**2), rest)
    taken = [{}, {EMPTY: rest}, {EMPTY: rest, OWN_PLACE: objects}, {EMPTY: rest, MIDDLE: objects}]
    picture = pair.clean.scene.image(grid.canvas)
    titles = [f"{number} {step}" for number, step in enumerate(ladder.STEPS)]
    return sources({title: (picture, sets) for title, sets in zip(titles, taken, strict=True)}, grid)


def partial_ablation(pair: Pair, grid: Grid):
    """What each partial ordering ablation replaces in a pair's clean picture; returns the figure."""
    rest, picture = background(grid, pair.orientation), pair.clean.scene.image(grid.canvas)
    scenes = {}
    for part in PARTS:
        tokens = part_tokens(grid, pair.orientation, part, np.random.default_rng(0))
        scenes[part] = (picture, {EMPTY: np.intersect1d(tokens, rest), MIDDLE: np.setdiff1d(tokens, rest)})
    return sources(scenes, grid)


def interchanged(pair: Pair, edits: dict[str, Interchange], grid: Grid):
    """A pair's mirror picture, and the clean one once for each interchange with it (those of a study's first pair):
    which side of the mirror picture a token's vector comes from. Returns the figure."""
    rows, columns = np.divmod(np.arange(grid.side**2), grid.side)
    second = (columns if pair.orientation == "horizontal" else rows) >= grid.side / 2
    scenes = {"the mirror picture": (pair.counterfactual.scene.image(grid.canvas), {})}
    for title, edit in edits.items():
        written, beyond = edit.targets[0], second[edit.sources[0]]
        sets = dict(zip(SIDES[pair.orientation], (written[~beyond], written[beyond]), strict=True))
        scenes[title] = (pair.clean.scene.image(grid.canvas), sets)
    return sources(scenes, grid)


# --- runs -----------------------------------------------------------------------------------------------------

IMAGE, LAST = "image\ntokens", "last\ntoken"
LONGEST = 13  # words of a question that have room in a row
KINDS = {  # of arrows: colour, line and meaning
    "write": (VERMILLION, "-", "this vector is written into the other run"),
    "cut": (VERMILLION, "--", "attention that is cut off"),
    "scale": (GREEN, "-", "attention that is scaled"),
}


@dataclass(frozen=True)
class Shown:
    """A run as a row: picture, tokens in order (words, `IMAGE`, `LAST`, ...), and what can come out."""

    title: str
    picture: Image.Image
    tokens: tuple[str, ...]
    answer: str

    @classmethod
    def of(
        cls, title: str, scene: Picture, question: str, grid: Grid, answer: str = "", image: Sequence[str] = (IMAGE,)
    ) -> Shown:
        """A question about a scene as a row; image: names for its image tokens. Of long questions both ends are
        shown."""
        words = question.split()
        words = words if len(words) <= LONGEST else [*words[: LONGEST // 2], "...", *words[-(LONGEST // 2) :]]
        return cls(title, scene.image(grid.canvas), (*image, *words, LAST), answer)


@dataclass(frozen=True)
class Arrow:
    """From one token to another, each (row, token, slot); kind: one of `KINDS`."""

    source: tuple[int, int, float]
    target: tuple[int, int, float]
    kind: str = "write"


def runs(rows: Sequence[Shown], arrows: Sequence[Arrow], slots: int):
    """Rows of tokens with a dot per slot (0 at the bottom), and arrows between them; returns the figure."""
    figure, axes = figures.panels(len(rows), 2, height=1.5, width_ratios=[1, 5.4], squeeze=False)
    for (left, right), row in zip(axes, rows, strict=True):
        left.imshow(np.asarray(row.picture), interpolation="nearest")
        left.set(xticks=[], yticks=[])
        left.set_title(row.title, fontsize=8)
        for spine in left.spines.values():
            spine.set(visible=True, color=GREY, linewidth=0.6)
        _columns(right, row, slots, 3.2 if any(each.answer for each in rows) else 0.7)
    for arrow in arrows:
        _drawn(figure, axes[:, 1], arrow)
    kinds = [KINDS[kind] for kind in dict.fromkeys(arrow.kind for arrow in arrows)]
    handles = [Line2D([], [], color=colour, linestyle=line) for colour, line, _ in kinds]
    figure.legend(handles, [meaning for *_, meaning in kinds], loc="outside lower center", ncols=len(kinds))
    return figure


def _columns(ax, row: Shown, slots: int, room: float) -> None:
    """The tokens of a run as lines of dots, one per slot, and in the room beside the last one what can come out."""
    places = range(len(row.tokens))
    for place in places:
        ax.plot([place] * slots, range(slots), "o-", color=GREY, markersize=2.2, linewidth=0.6, zorder=1)
    ax.set_xticks(places, row.tokens, fontsize=6.5 if len(places) < 16 else 5.2)
    ax.set_yticks([0, slots - 1])
    ax.set(ylim=(-0.6, slots - 0.4), xlim=(-0.7, len(places) - 1 + room), ylabel="slot")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.text(places[-1] + 0.45, slots - 1, row.answer, fontsize=7, va="top")


def _drawn(figure, axes, arrow: Arrow) -> None:
    """An arrow, bent between rows, with a dot at either end; one that is cut is crossed out in its middle."""
    (row, *start), (row_to, *end) = arrow.source, arrow.target
    colour, line, _ = KINDS[arrow.kind]
    look = {"color": colour, "linestyle": line, "linewidth": 1.6, "arrowstyle": "-|>", "mutation_scale": 10}
    bent = f"arc3,rad={0 if row == row_to else 0.25}"
    ends = {"axesA": axes[row], "axesB": axes[row_to], "shrinkA": 3, "shrinkB": 3, "connectionstyle": bent}
    figure.add_artist(ConnectionPatch(start, end, "data", "data", zorder=5, **ends, **look))
    for ax, place in ((axes[row], start), (axes[row_to], end)):
        ax.plot(*place, "o", color=colour, markersize=4.5, zorder=6)
    if arrow.kind == "cut":
        axes[row].plot(*np.mean([start, end], axis=0), "x", color=BLACK, markersize=11, markeredgewidth=2.2, zorder=7)


def patched(pair: Pair, grid: Grid, slots: int, tokens: Sequence[str] = ("last",), between: bool = False):
    """A token of a pair's counterfactual run goes into the clean run at one slot: "last", or the word of the
    "reference"; two tokens are two patches. between: what is patched is the output of a part of a layer, which lies
    between two slots. Returns the figure."""
    rows = _rows(pair, grid, "counterfactual")
    slot, arrows, both = slots // 2 + 0.5 * between, [], (pair.counterfactual, pair.clean)
    for token in tokens:
        source, target = (_place(row, item, token) for row, item in zip(rows[::-1], both, strict=True))
        arrows.append(Arrow((1, source, slot), (0, target, slot)))
    return runs(rows, arrows, slots)


def _place(row: Shown, item: Item, token: str) -> int:
    """The number of the last token, or of the word that names the reference."""
    if token == "last":
        return len(row.tokens) - 1
    reference = item.candidates[-1]
    return next(k for k, word in enumerate(row.tokens) if word.strip("?.,") == reference)


def things(item: Item) -> tuple[str, ...]:
    """Names for the image tokens of an item: those of its things, in the order of the line, and the rest."""
    return (*(str(entity).replace(" ", "\n") for entity in item.entities), "rest")


def _rows(pair: Pair, grid: Grid, other: str, image: Callable = lambda item: (IMAGE,)) -> list[Shown]:
    """Both runs of a pair, the clean one with the entities that are read; other: what the second one is called.

    image: names for an item's image tokens."""
    read = "\n".join(f"{role}: {word}" for role, word in zip(pair.roles, pair.candidates, strict=True))
    both = (("clean", pair.clean, read), (other, pair.counterfactual, ""))
    return [Shown.of(name, item.scene, item.question, grid, answer, image(item)) for name, item, answer in both]


def object_interchange(pair: Pair, grid: Grid, slots: int):
    """The outer objects' tokens of the mirror picture go to the other side of the clean one; returns the figure."""
    rows = _rows(pair, grid, "mirror", things)
    slot = slots // 2
    return runs(rows, [Arrow((1, 2, slot), (0, 0, slot)), Arrow((1, 0, slot), (0, 2, slot))], slots)


def last_token_reads(scene: Picture, question: str, grid: Grid, slots: int, kind: str, image: Sequence[str] = (IMAGE,)):
    """The last token looks at image tokens, the first of `image`, in one layer; kind "cut" or "scale". Returns the
    figure."""
    row, slot = Shown.of("one run", scene, question, grid, "", image), slots // 2
    return runs([row], [Arrow((0, 0, slot), (0, len(row.tokens) - 1, slot + 1), kind)], slots)


# --- amplification --------------------------------------------------------------------------------------------


def amplified(item: SideItem, grid: Grid, vectors: Tensor, direction: Tensor, alpha: float):
    """All image tokens of a picture are amplified; beside it two real vectors before and after, in the plane of the
    direction and of what is left of the vector without it. Returns the figure.

    vectors: the mean token [object, hidden] of the first and the last object; direction [hidden].
    """
    figure, axes = figures.panels(1, 2, height=2.2, width_ratios=[1, 2])
    figures.show_scene(axes[0], item.scene.image(grid.canvas), {}, grid.side, grid.pixels, "every image token")
    figures.mark(axes[0], np.arange(grid.side**2), grid.side, grid.pixels, Look(GREEN))
    along, rest = in_plane(vectors, direction)
    for number, (name, x, y) in enumerate(zip(("first object", "last object"), along, rest, strict=True)):
        colour = (BLUE, ORANGE)[number]
        axes[1].plot([0, x], [0, y], "-o", color=colour, label=f"{name}, as it is")
        axes[1].plot([0, x * (1 + alpha)], [0, y], "--s", color=colour, label=f"{name}, alpha = {alpha:g}")
    axes[1].axvline(0, color=GREY, linewidth=0.8, linestyle=figures.DOTS)
    axes[1].set(xlabel="along the direction", ylabel="length of the rest (other scale)", ylim=(0, None))
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def in_plane(vectors: Tensor, direction: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of vectors [row, hidden], the part along a direction, with its sign, and the length of what is left."""
    vectors, unit = vectors.double().cpu(), direction.double().cpu()
    along = vectors @ (unit / unit.norm())
    return along.numpy(), (vectors.pow(2).sum(-1) - along**2).clamp(min=0).sqrt().numpy()
