"""Enhancement (PROTOCOL.md 7 and 8): turn up the order directions in all image tokens, and count what that repairs and
what it breaks (floor 3: no files, no plots).

`ask` makes items ready, `order_directions` learns directions from items the model answers right, a `Change` says what
is added to image tokens at alpha = 1, `sweep` adds alpha times that and gives one row per item, condition and alpha,
`score` counts, `in_sample`, `cross_fitted` and `per_item` choose alpha. `enhance` is the same for plain transformers.

Both ways to count: the paper assumes that what was right stays right (`paper_accuracy`); `strict_accuracy` looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.analysis import probes, statistics
from lib.engine.hooks import hooks
from lib.engine.tensors import ImageTokens
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.interventions import Run, along, amplification_sweep, amplify
from lib.stimuli.grids import ORIENTATIONS, Grid
from lib.stimuli.questions import Item, SideItem
from lib.stimuli.scenes import Scene
from lib.stimuli.token_sets import box_tokens, object_tokens, strip_tokens

Directions = dict[str, Float[Tensor, "direction hidden"]]  # for each axis
FIRST = ("left", "above")  # the relations of what comes first along its axis


# --- items made ready ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Items as a run of one model: every picture encoded once, side items asked in both option orders.

    owner: the item of each row of the run. scene: a number for each item's picture, the unit of folds and intervals.
    """

    vlm: VLM
    items: tuple[Item | SideItem, ...]
    run: Run
    owner: np.ndarray
    scene: np.ndarray

    @property
    def axis(self) -> np.ndarray:
        """The queried axis of each item."""
        return np.array([item.orientation for item in self.items])

    @cached_property
    def ids(self) -> Tensor:
        """Candidates [row, role, spelling]; role 0 is the answer."""
        return self.vlm.candidates([self.items[k].candidates for k in self.owner])

    @cached_property
    def picture(self) -> np.ndarray:
        """The row of each item's picture in run.images."""
        return self.run.index[np.searchsorted(self.owner, np.arange(len(self.items)))]

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, mask) -> Asked:
        """Chosen items (a mask or numbers); a UserError when none is left."""
        chosen = np.flatnonzero(mask) if np.asarray(mask).dtype == bool else np.asarray(mask)
        if not len(chosen):
            raise UserError(f"{self.vlm.name}: no item is left.")
        rows = np.concatenate([np.flatnonzero(self.owner == k) for k in chosen])
        owner = np.repeat(np.arange(len(chosen)), [int((self.owner == k).sum()) for k in chosen])
        items = tuple(self.items[k] for k in chosen)
        return Asked(self.vlm, items, self.run.rows(rows), owner, self.scene[chosen])


def ask(vlm: VLM, items: Sequence[Item | SideItem], form: str = "", progress: bool = False) -> Asked:
    """Encode the distinct pictures of items and tokenise their questions.

    form: see questions.side_question; by default the one the paper asks this family in.
    """
    form = form or vlm.family.side_form
    texts = [item.questions(form) if isinstance(item, SideItem) else (item.question,) for item in items]
    drawn = {item.scene: None for item in items}
    drawn = {scene: scene.image(vlm.grid.canvas) for scene in drawn}
    images, same = vlm.distinct(list(drawn.values()), progress)
    place = dict(zip(drawn, same, strict=True))
    scene = np.array([place[item.scene] for item in items])
    owner = np.repeat(np.arange(len(items)), [len(each) for each in texts])
    run = Run.of(vlm, [text for each in texts for text in each], images, scene[owner])
    return Asked(vlm, tuple(items), run, owner, scene)


def one_axis_each(items: Sequence[SideItem], most: int = 4) -> list[SideItem]:
    """At most `most` items of every picture, along one axis, axes taking turns: its amplified picture serves all."""
    out: dict[str, list[SideItem]] = {item.key: [] for item in items}
    turn = {key: ORIENTATIONS[k % 2] for k, key in enumerate(out)}
    for item in items:
        if item.orientation == turn[item.key] and len(out[item.key]) < most:
            out[item.key].append(item)
    return [item for own in out.values() for item in own]


def halves(items: Sequence[Item | SideItem], seed: int = 0) -> tuple[list, list]:
    """The items dealt into two lists at random, no picture in both: to score, and to learn directions from."""
    pictures = list(dict.fromkeys(item.scene for item in items))
    dealt = np.random.default_rng(seed).permutation(len(pictures)) % 2
    half = dict(zip(pictures, dealt.tolist(), strict=True))
    return tuple([item for item in items if half[item.scene] == k] for k in (0, 1))


# --- directions ---------------------------------------------------------------------------------------------


def ends(item: Item | SideItem, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Image tokens of the first and of the last object along the item's axis.

    Side items: from their boxes. Lines of three: the outer entities. What'sUp composites, which have no boxes: the
    outer strips.
    """
    if isinstance(item, SideItem):
        sets = [box_tokens(box, grid, item.size) for box in (item.subject_box, item.reference_box)]
        return tuple(sets if item.relation in FIRST else sets[::-1])
    if isinstance(item.scene, Scene):
        return tuple(object_tokens(grid, item.orientation, slot, item.shift) for slot in (0, 2))
    return tuple(strip_tokens(grid, item.orientation, slot) for slot in (0, 2))


def object_means(asked: Asked, tokens: ImageTokens | None = None) -> Float[Tensor, "item end hidden"]:
    """Mean embedding of the first and the last object of every item, float32 on the CPU, where probes are trained;
    tokens: those at another slot (`tokens_at`)."""
    tokens = asked.run.images if tokens is None else tokens
    both = [
        torch.stack([tokens[picture, torch.as_tensor(end)].mean(0) for end in ends(item, asked.vlm.grid)])
        for item, picture in zip(asked.items, asked.picture, strict=True)
    ]
    return torch.stack(both).float().cpu()


def order_directions(
    asked: Asked,
    seed: int = 0,
    recipe: str = "adamw",
    shuffled: bool = False,
    tokens: ImageTokens | None = None,
) -> Directions:
    """Per axis, the two columns of a probe for "first or last along the axis" on object means (PROTOCOL.md 7).

    shuffled: labels dealt anew among the objects, a control. An axis without items has no directions.
    """
    means, axis, out = object_means(asked, tokens), asked.axis, {}
    for name in ORIENTATIONS:
        x = means[torch.as_tensor(axis == name)].flatten(0, 1)
        if len(x):
            labels = np.tile([0, 1], len(x) // 2)
            labels = np.random.default_rng(seed).permutation(labels) if shuffled else labels
            out[name] = probes.train(x, labels, 2, recipe, seed).weight.T.contiguous()
    return out


def random_directions(like: Directions, seed: int = 0) -> Directions:
    """Directions drawn from the sphere, as many as `like` has and each as long."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, w in like.items():
        drawn = torch.randn(w.shape, generator=generator)
        out[name] = drawn * (w.cpu().norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
    return out


def both_axes(directions: Directions) -> Directions:
    """All directions, whatever axis is asked about."""
    every = torch.cat(list(directions.values()))
    return {name: every for name in ORIENTATIONS}


def other_axis(directions: Directions) -> Directions:
    """The directions of the axis that is not asked about."""
    return {name: directions[other] for name, other in permutations(ORIENTATIONS) if other in directions}


# --- changes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What is added to image tokens at alpha = 1; called by sweeps with tokens [picture, token, d] and a row for each.

    axis: whose directions each row takes. mode: "project" and "add" as in interventions.along; "centred" projects the
    token's difference to the mean token of its picture; "complement" adds everything orthogonal to the directions.
    size: a factor per axis. where: only these tokens, a mask [row, token]. order: token k gets the change
    made for token order[k].
    """

    directions: Directions
    axis: np.ndarray
    mode: str = "project"
    size: dict[str, float] | None = None
    where: np.ndarray | None = None
    order: np.ndarray | None = None

    def key(self, row: int) -> bytes:
        """Rows about one picture with one key share one amplified picture."""
        return self.axis[row].encode() + (b"" if self.where is None else self.where[row].tobytes())

    def __call__(self, tokens: ImageTokens, rows: np.ndarray) -> ImageTokens:
        out = torch.zeros_like(tokens)
        for name in np.unique(self.axis[rows]):
            if name not in self.directions:
                raise UserError(f"There are no directions for the {name} axis: learn them from items about it.")
            mine = torch.as_tensor(self.axis[rows] == name)
            out[mine] = self._along(tokens[mine], self.directions[name]) * (self.size or {}).get(name, 1.0)
        if self.order is not None:
            out = out[:, torch.as_tensor(self.order)]
        if self.where is not None:
            out = out * torch.as_tensor(self.where[rows], device=out.device)[..., None]
        return out

    def _along(self, tokens: ImageTokens, w: Tensor) -> ImageTokens:
        if self.mode == "centred":
            return along(tokens - tokens.mean(1, keepdim=True), w)
        if self.mode != "complement":
            return along(tokens, w, self.mode)
        basis = torch.linalg.qr(w.float().T)[0].to(tokens.device, tokens.dtype)  # there is no QR in bfloat16
        return tokens - tokens @ basis @ basis.T


def change(asked: Asked, directions: Directions, **options) -> Change:
    """The change of items along the axis each asks about; options: fields of `Change`."""
    return Change(directions, asked.axis[asked.owner], **options)


def sizes(made: Change, images: ImageTokens) -> dict[str, float]:
    """Mean length, over tokens and pictures, of what a change adds at alpha = 1 along each axis."""
    out = {}
    for name in made.directions:
        plain = replace(made, axis=np.array([name] * len(images)), where=None)
        out[name] = float(plain(images, np.arange(len(images))).norm(dim=-1).mean())
    return out


def matched(made: Change, to: Change, images: ImageTokens) -> Change:
    """The change made, on average over the tokens of some pictures, as large as another (PROTOCOL.md 8.3)."""
    own, wanted = sizes(replace(made, size=None), images), sizes(to, images)
    return replace(made, size={name: wanted[name] / own[name] for name in own})


def object_mask(asked: Asked) -> np.ndarray:
    """Tokens of the two objects of each row's item, a mask [row, token]."""
    mask = np.zeros((len(asked), asked.vlm.grid.side**2), dtype=bool)
    for k, item in enumerate(asked.items):
        mask[k, np.concatenate(ends(item, asked.vlm.grid))] = True
    return mask[asked.owner]


# --- sweeps and counts --------------------------------------------------------------------------------------


def sweep(
    asked: Asked,
    changes: dict[str, Change | Callable],
    alphas: Sequence[float],
    slot: int = 0,
    progress: bool = False,
    **options,
) -> pd.DataFrame:
    """One row per item, condition and alpha: item, scene, axis, condition, alpha, before, after, p_before, p_after.

    before, after: right in every option order (the most probable token of the whole vocabulary). p_before, p_after:
    mean probability of the answer. Without changes: the rows of condition "none". options: done and save, as in
    interventions.amplification_sweep.
    """
    roles = ["answer", *(f"other {k}" for k in range(1, asked.ids.shape[1]))]
    run = (asked.vlm, asked.run, changes, alphas, asked.ids, roles)
    table = amplification_sweep(*run, slot=slot, progress=progress, **options)
    table = table[table["role"] == "answer"].assign(item=lambda t: asked.owner[t["pair"]])
    found = table.groupby(["edit", "alpha", "item"], sort=False).agg(
        after=("first", "all"), p_after=("probability", "mean")
    )
    found = found.reset_index().rename(columns={"edit": "condition"})
    none = found[found["condition"] == "none"].set_index("item")
    chosen = found[found["condition"] != "none"] if changes else found
    item = chosen["item"].to_numpy()
    return chosen.assign(
        scene=asked.scene[item],
        axis=asked.axis[item],
        before=none["after"].loc[item].to_numpy(),
        p_before=none["p_after"].loc[item].to_numpy(),
    ).reset_index(drop=True)


def right(asked: Asked) -> np.ndarray:
    """Which items are answered right in every option order."""
    return sweep(asked, {}, []).sort_values("item")["after"].to_numpy()


def answered(asked: Asked, least: int = 20) -> Asked:
    """The items answered right in every option order, from which directions are learned; all items when along some
    axis fewer than `least` are right: a model that cannot answer leaves nothing to choose from."""
    good = right(asked)
    enough = all(good[asked.axis == name].sum() >= least for name in np.unique(asked.axis))
    return asked.rows(good) if enough else asked


def score(results: pd.DataFrame, by: Sequence[str] = ("condition", "alpha"), seed: int = 0) -> pd.DataFrame:
    """What was repaired and what broken in each cell of `by`, intervals over whole scenes.

    n items; repaired: share of the failures that are right afterwards; broken: share of the right ones that are wrong
    afterwards; strict_accuracy with low, high; net: its difference to that without enhancement; paper_accuracy: were
    nothing broken. repaired, broken and net have their intervals in <name>_low, <name>_high.
    """
    by, failed = list(by), ~results["before"]
    wide = results.assign(
        strict_accuracy=results["after"].astype(float),
        net=results["after"].astype(float) - results["before"],
        paper_accuracy=(results["after"] | results["before"]).astype(float),
        repaired=results["after"].astype(float),
        broken=1.0 - results["after"],
    )
    out = wide.groupby(by, sort=True).size().rename("n").reset_index()
    subsets = {"strict_accuracy": slice(None), "net": slice(None), "paper_accuracy": slice(None),
               "repaired": failed, "broken": ~failed}  # fmt: skip
    for name, rows in subsets.items():
        own = wide[rows]
        if not len(own):  # nothing to repair, or nothing to break
            out[[name, f"{name}_low", f"{name}_high"]] = np.nan
            continue
        found = statistics.summarise(own, by, name, unit="scene", seed=seed).drop(columns="n")
        found = found.rename(columns={"low": f"{name}_low", "high": f"{name}_high"})
        out = out.merge(found, on=by, how="left")
    return out.rename(columns={"strict_accuracy_low": "low", "strict_accuracy_high": "high"})


def untouched(results: pd.DataFrame) -> pd.DataFrame:
    """The same items without enhancement, as rows of condition "none" at alpha 0."""
    once = results.drop_duplicates("item")
    return once.assign(condition="none", alpha=0.0, after=once["before"], p_after=once["p_before"])


def tall(scores: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Some columns of `score` one below the other: condition, alpha where there is one, measure, value, low, high."""
    keys = [key for key in ("condition", "alpha") if key in scores]
    parts = []
    for name in names:
        bounds = ("low", "high") if name == "strict_accuracy" else (f"{name}_low", f"{name}_high")
        part = scores[[*keys, name, *bounds]].set_axis([*keys, "value", "low", "high"], axis=1)
        parts.append(part.assign(measure=name))
    return pd.concat(parts, ignore_index=True)


# --- choosing alpha -----------------------------------------------------------------------------------------

AIMS = {  # what alpha is chosen for
    "repaired": lambda cell: cell["after"][~cell["before"]].mean(),  # the paper: breakage does not count
    "net": lambda cell: cell["after"].mean(),
}


def best_alpha(results: pd.DataFrame, aim: str = "net") -> float:
    """The alpha of one condition that does best by an aim; of equals the smallest."""
    values = {alpha: AIMS[aim](cell) for alpha, cell in results.groupby("alpha")}
    return max(sorted(values, key=abs), key=lambda alpha: np.nan_to_num(values[alpha], nan=-1.0))


def in_sample(results: pd.DataFrame, aim: str = "net") -> pd.DataFrame:
    """Rows of each condition at the alpha that does best on these very items, as in the paper."""
    chosen = results.groupby("condition", sort=False)
    return pd.concat(cell[cell["alpha"] == best_alpha(cell, aim)] for _, cell in chosen)


def cross_fitted(results: pd.DataFrame, aim: str = "net", folds: int = 2, seed: int = 0) -> pd.DataFrame:
    """Rows of each condition at the alpha chosen on the other folds; folds are of whole scenes."""
    scenes = np.unique(results["scene"])
    dealt = np.random.default_rng(seed).permutation(len(scenes)) % folds
    fold = dealt[np.searchsorted(scenes, results["scene"])]
    parts = []
    for _, cell in results.assign(fold=fold).groupby("condition", sort=False):
        for k in range(folds):
            alpha = best_alpha(cell[cell["fold"] != k], aim)
            parts.append(cell[(cell["fold"] == k) & (cell["alpha"] == alpha)])
    return pd.concat(parts)


def per_item(results: pd.DataFrame) -> pd.DataFrame:
    """An upper bound that nobody can reach: every item at the best alpha for itself, known from its answer."""
    best = results.sort_values(["after", "p_after"], ascending=False, kind="stable")
    return best.drop_duplicates(["condition", "item"]).sort_values(["condition", "item"])


# --- for your own generate call -----------------------------------------------------------------------------


@contextmanager
def enhance(vlm: VLM, directions: Float[Tensor, "direction hidden"], alpha: float) -> Iterator[None]:
    """Amplify directions in all image tokens of everything `vlm.model` does inside the block, `generate` included.

    The change is made to the projector's output, which is slot 0 at the image tokens of every family. Nothing is left
    behind afterwards, whatever happens inside. alpha = 0 changes nothing, bit for bit.
    """
    width = vlm.language.config.hidden_size
    if directions.ndim != 2 or directions.shape[1] != width:
        raise UserError(f"{vlm.name} needs directions of shape [direction, {width}], not {list(directions.shape)}.")

    def after(module, args, output):
        if isinstance(output, Tensor):
            return amplify(output, directions, alpha)
        return (amplify(output[0], directions, alpha), *output[1:])

    with hooks((vlm.projector, "after", after)):
        yield
