"""Enhancement: amplify the order directions in all image tokens, count what that repairs and what it breaks.

PROTOCOL.md 7 and 8.1 to 8.3; floor 3: no files, no plots. `item_run` prepares items, `order_directions` learns
directions from items that the model answers correctly, a `Change` is what is added to image tokens at alpha = 1,
`sweep` adds alpha times that and gives one row per item, condition and alpha; `score` counts, and `in_sample`,
`cross_fitted` and `per_item` choose alpha. `enhance` does the same to a model's own `generate`.

There are two ways to count: the paper's assumes that correct answers stay correct (`paper_accuracy`);
`strict_accuracy` counts the broken ones.
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
from lib.engine.hooks import hooks, on_output
from lib.engine.tensors import ImageTokens
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.edits import along, amplify
from lib.patching.runs import Run
from lib.patching.sweep import amplification_sweep
from lib.stimuli.facts import Fact
from lib.stimuli.grids import ORIENTATIONS, Grid
from lib.stimuli.questions import Item, SideItem
from lib.stimuli.scenes import Scene
from lib.stimuli.token_sets import box_tokens, object_tokens, strip_tokens

Directions = dict[str, Float[Tensor, "direction hidden"]]  # for each axis
FIRST = ("left", "above")  # the relations of the object that comes first along its axis


# --- items as runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemRun:
    """Items as a run of one model: every picture encoded once, side items asked in both option orders.

    item_of: the item of each row of the run. scene: the number of each item's picture, the unit of folds and
    intervals. weight: how many items each one stands for, where they are a sample (see enhancement_samples.py).
    """

    vlm: VLM
    items: tuple[Item | SideItem, ...]
    run: Run
    item_of: np.ndarray
    scene: np.ndarray
    weight: np.ndarray | None = None

    @property
    def axis(self) -> np.ndarray:
        """The axis that each item asks about."""
        return np.array([item.orientation for item in self.items])

    @cached_property
    def ids(self) -> Tensor:
        """Candidates [row, role, spelling]; role 0 is the answer."""
        return self.vlm.candidates([self.items[k].candidates for k in self.item_of])

    @cached_property
    def picture(self) -> np.ndarray:
        """The row of each item's picture in run.images."""
        return self.run.index[np.searchsorted(self.item_of, np.arange(len(self.items)))]

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, mask) -> ItemRun:
        """The run of some items (a mask, or their numbers); a UserError when none is chosen."""
        chosen = np.flatnonzero(mask) if np.asarray(mask).dtype == bool else np.asarray(mask)
        if not len(chosen):
            raise UserError(f"{self.vlm.name}: no item is left.")
        rows = np.concatenate([np.flatnonzero(self.item_of == k) for k in chosen])
        item_of = np.repeat(np.arange(len(chosen)), [int((self.item_of == k).sum()) for k in chosen])
        items = tuple(self.items[k] for k in chosen)
        weight = None if self.weight is None else self.weight[chosen]
        return ItemRun(self.vlm, items, self.run.rows(rows), item_of, self.scene[chosen], weight)


def item_run(vlm: VLM, items: Sequence[Item | SideItem], form: str = "", progress: bool = False) -> ItemRun:
    """Encode the distinct pictures of items and tokenise their questions.

    form: see `questions.side_question`, by default the paper's for this family.
    """
    form = form or vlm.family.side_form
    asked = [item.questions(form) for item in items]
    drawn = {scene: scene.image(vlm.grid.canvas) for scene in dict.fromkeys(item.scene for item in items)}
    images, index = vlm.distinct(list(drawn.values()), progress)
    row_of = dict(zip(drawn, index, strict=True))
    scene = np.array([row_of[item.scene] for item in items])
    item_of = np.repeat(np.arange(len(items)), [len(each) for each in asked])
    run = Run.of(vlm, [text for each in asked for text in each], images, scene[item_of])
    return ItemRun(vlm, tuple(items), run, item_of, scene)


def one_axis_each(items: Sequence[SideItem], most: int = 4) -> list[SideItem]:
    """At most `most` items of every picture, all about one axis, so that one amplified picture serves them all.

    The axis alternates from picture to picture.
    """
    out: dict[str, list[SideItem]] = {item.key: [] for item in items}
    axis_of = {key: ORIENTATIONS[k % 2] for k, key in enumerate(out)}
    for item in items:
        if item.orientation == axis_of[item.key] and len(out[item.key]) < most:
            out[item.key].append(item)
    return [item for chosen in out.values() for item in chosen]


def split_halves(items: Sequence[Item | SideItem], seed: int = 0) -> tuple[list, list]:
    """The items in two random lists without a common picture: one to score, one to learn directions from."""
    pictures = list(dict.fromkeys(item.scene for item in items))
    halves = np.random.default_rng(seed).permutation(len(pictures)) % 2
    half = dict(zip(pictures, halves.tolist(), strict=True))
    return tuple([item for item in items if half[item.scene] == k] for k in (0, 1))


# --- directions ---------------------------------------------------------------------------------------------


def end_tokens(item: Item | SideItem, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Image tokens of the first and of the last object along the item's axis.

    Of side items from their boxes; of lines of three those of the outer entities; of What'sUp composites, which have
    no boxes, the outer strips.
    """
    if isinstance(item, SideItem):
        sets = [box_tokens(box, grid, item.size) for box in (item.subject_box, item.reference_box)]
        return tuple(sets if item.relation in FIRST else sets[::-1])
    if isinstance(item.scene, Scene):
        return tuple(object_tokens(grid, item.orientation, place, item.shift) for place in (0, 2))
    return tuple(strip_tokens(grid, item.orientation, place) for place in (0, 2))


def object_means(asked: ItemRun, tokens: ImageTokens | None = None) -> Float[Tensor, "item end hidden"]:
    """Mean embedding of the first and of the last object of every item, float32 on the CPU.

    tokens: image tokens at another slot (`tokens_at`); by default those of slot 0.
    """
    tokens = asked.run.images if tokens is None else tokens
    both = [
        torch.stack([tokens[picture, torch.as_tensor(end)].mean(0) for end in end_tokens(item, asked.vlm.grid)])
        for item, picture in zip(asked.items, asked.picture, strict=True)
    ]
    return torch.stack(both).float().cpu()


def order_directions(
    asked: ItemRun,
    seed: int = 0,
    recipe: str = "adamw",
    shuffled: bool = False,
    tokens: ImageTokens | None = None,
) -> Directions:
    """Per axis, the two columns of a probe for "first or last along the axis" on object means (PROTOCOL.md 7).

    shuffled: with shuffled labels, a control. An axis without items has no directions.
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
    """Random directions, uniform on the sphere, as many as `like` has and each as long."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, w in like.items():
        drawn = torch.randn(w.shape, generator=generator)
        out[name] = drawn * (w.cpu().norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
    return out


def both_axes(directions: Directions) -> Directions:
    """For either axis the directions of both."""
    every = torch.cat(list(directions.values()))
    return {name: every for name in ORIENTATIONS}


def other_axis(directions: Directions) -> Directions:
    """For each axis the directions of the other one."""
    return {name: directions[other] for name, other in permutations(ORIENTATIONS) if other in directions}


# --- changes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What is added to image tokens at alpha = 1; sweeps call it with tokens [picture, token, d] and the row of each.

    axis: the axis whose directions each row takes. mode: "project" and "add" as in `along`; "centred" projects the
    difference between a token and the mean token of its picture; "complement" adds everything orthogonal to the
    directions. size: a factor per axis. where: a mask [row, token] of the tokens that change. order: token k gets the
    change that was computed for token order[k].
    """

    directions: Directions
    axis: np.ndarray
    mode: str = "project"
    size: dict[str, float] | None = None
    where: np.ndarray | None = None
    order: np.ndarray | None = None

    def key(self, row: int) -> bytes:
        """Rows about one picture that have the same key share one amplified picture."""
        return self.axis[row].encode() + (b"" if self.where is None else self.where[row].tobytes())

    def __call__(self, tokens: ImageTokens, rows: np.ndarray) -> ImageTokens:
        out = torch.zeros_like(tokens)
        for name in np.unique(self.axis[rows]):
            if name not in self.directions:
                raise UserError(f"There are no directions for the {name} axis: learn them from items about it.")
            on_axis = torch.as_tensor(self.axis[rows] == name)
            out[on_axis] = self._along(tokens[on_axis], self.directions[name]) * (self.size or {}).get(name, 1.0)
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


def change(asked: ItemRun, directions: Directions, **options) -> Change:
    """The change of every item along the axis it asks about; options: fields of `Change`."""
    return Change(directions, asked.axis[asked.item_of], **options)


def mean_sizes(added: Change, images: ImageTokens) -> dict[str, float]:
    """Per axis the mean length, over tokens and pictures, of what a change adds at alpha = 1."""
    out = {}
    for name in added.directions:
        everywhere = replace(added, axis=np.array([name] * len(images)), where=None)
        out[name] = float(everywhere(images, np.arange(len(images))).norm(dim=-1).mean())
    return out


def matched_in_size(added: Change, to: Change, images: ImageTokens) -> Change:
    """The change scaled to be as large as another, on average over the tokens of some pictures (PROTOCOL.md 8.3)."""
    unscaled, wanted = mean_sizes(replace(added, size=None), images), mean_sizes(to, images)
    return replace(added, size={name: wanted[name] / unscaled[name] for name in unscaled})


def object_mask(asked: ItemRun) -> np.ndarray:
    """A mask [row, token] of the tokens of the two objects of each row's item."""
    mask = np.zeros((len(asked), asked.vlm.grid.side**2), dtype=bool)
    for k, item in enumerate(asked.items):
        mask[k, np.concatenate(end_tokens(item, asked.vlm.grid))] = True
    return mask[asked.item_of]


# --- sweeps and counts --------------------------------------------------------------------------------------


def sweep(
    asked: ItemRun,
    changes: dict[str, Change | Callable],
    alphas: Sequence[float],
    slot: int = 0,
    progress: bool = False,
    **options,
) -> pd.DataFrame:
    """One row per item, condition and alpha: item, scene, axis, weight, condition, alpha, before, after, p_before,
    p_after.

    before, after: correct in every option order (the most probable token of the whole vocabulary). p_before, p_after:
    mean probability of the answer. Without changes: the rows of condition "none". options: mode, as in
    `amplification_sweep`.
    """
    roles = ["answer", *(f"other {k}" for k in range(1, asked.ids.shape[1]))]
    run = (asked.vlm, asked.run, changes, alphas, asked.ids, roles)
    table = amplification_sweep(*run, slot=slot, progress=progress, **options)
    table = table[table["role"] == "answer"].assign(item=lambda t: asked.item_of[t["pair"]])
    found = table.groupby(["edit", "alpha", "item"], sort=False).agg(
        after=("is_top", "all"), p_after=("probability", "mean")
    )
    found = found.reset_index().rename(columns={"edit": "condition"})
    none = found[found["condition"] == "none"].set_index("item")
    chosen = found[found["condition"] != "none"] if changes else found
    item = chosen["item"].to_numpy()
    return chosen.assign(
        scene=asked.scene[item],
        axis=asked.axis[item],
        weight=1.0 if asked.weight is None else asked.weight[item],
        before=none["after"].loc[item].to_numpy(),
        p_before=none["p_after"].loc[item].to_numpy(),
    ).reset_index(drop=True)


def correct(asked: ItemRun) -> np.ndarray:
    """Which items are answered correctly in every option order, a mask [item]."""
    right = np.ones(len(asked), dtype=bool)
    for rows, last in asked.vlm.language.last_states(asked.run.prompt, asked.run.images, asked.run.index):
        top = asked.vlm.logits(last).argmax(-1).cpu()
        said = (asked.ids[torch.as_tensor(rows), 0] == top[:, None]).any(-1).numpy()
        np.logical_and.at(right, asked.item_of[rows], said)
    return right


def correct_items(asked: ItemRun, least: int = 20) -> ItemRun:
    """The items answered correctly in every option order, from which directions are learned.

    All items if along some axis fewer than `least` are correct: too few to learn from.
    """
    mask = correct(asked)
    enough = all(mask[asked.axis == name].sum() >= least for name in np.unique(asked.axis))
    return asked.rows(mask) if enough else asked


def score(results: pd.DataFrame, by: Sequence[str] = ("condition", "alpha"), seed: int = 0) -> pd.DataFrame:
    """What an enhancement repairs and breaks in each cell of `by`, with intervals over whole scenes.

    Columns n (items); repaired: share of the failures that are correct afterwards; broken: share of the correct ones
    that are wrong afterwards; strict_accuracy with low and high; net: its difference from strict accuracy without
    enhancement; paper_accuracy: the accuracy if nothing broke. Intervals of the others: <name>_low, <name>_high. Where
    there is a column `weight`, each row counts so many times.
    """
    results = results.reset_index(drop=True)
    after, before = results["after"].astype(float), results["before"].astype(float)
    everything = results["before"] | True
    measures = {
        "strict_accuracy": (after, everything),
        "net": (after - before, everything),
        "paper_accuracy": (np.maximum(after, before), everything),
        "repaired": (after, ~results["before"]),
        "broken": (1 - after, results["before"]),
    }
    out = []
    for key, cell in results.groupby(list(by), sort=True):
        row = dict(zip(by, key, strict=True)) | {"n": cell["item"].nunique()}
        for name, (values, counted) in measures.items():
            found = weighted_mean(cell[counted[cell.index]], values, seed)
            bounds = ("low", "high") if name == "strict_accuracy" else (f"{name}_low", f"{name}_high")
            row |= dict(zip((name, *bounds), found, strict=True))
        out.append(row)
    return pd.DataFrame(out)


def weighted_mean(rows: pd.DataFrame, values: pd.Series, seed: int = 0) -> tuple[float, float, float]:
    """Mean of values over rows, each counted `weight` times, with its interval over whole scenes; NaN without rows."""
    if not len(rows):  # nothing to repair, or nothing to break
        return np.nan, np.nan, np.nan
    weight = weights(rows)
    found = statistics.ratio(values[rows.index] * weight, weight, units=rows["scene"], seed=seed)
    return found.value, found.low, found.high


def weights(rows: pd.DataFrame) -> pd.Series:
    """How many times each row counts: its `weight`, 1 where there is none."""
    return rows["weight"] if "weight" in rows else pd.Series(1.0, index=rows.index)


def beyond_random(results: pd.DataFrame, condition: str, seed: int = 0) -> statistics.Estimate:
    """Share of failures that a condition repairs, minus the mean over the random ones, each at its best alpha (C7).

    results: a `sweep`; only failures count. Conditions called "random ..." are the null. Resampled are whole scenes; n
    counts failures, because the rule asks for a number of them.
    """
    if results["before"].all():
        return statistics.Estimate(np.nan, np.nan, np.nan, 0)
    best = in_sample(results[~results["before"]], "repaired")
    own = best[best["condition"] == condition].set_index("item")
    null = best[best["condition"].str.startswith("random")].groupby("item")["after"].mean()
    found = statistics.difference(own["after"], null.reindex(own.index), units=own["scene"], seed=seed)
    return replace(found, n=len(own))


def unrelated(vlm: VLM, facts: Sequence[Fact], directions: Directions, alpha: float) -> pd.DataFrame:
    """Questions that are not about space, without enhancement and with it, along the directions of both axes.

    One row per question: scene (its picture), form (colour, shape, presence, number), before, after (the most probable
    token of the whole vocabulary is the answer).
    """
    images, index = vlm.distinct([fact.scene.image(vlm.grid.canvas) for fact in facts])
    run = Run.of(vlm, [fact.question for fact in facts], images, index)
    ids = vlm.candidates([[fact.answer] for fact in facts])
    every = torch.cat(list(directions.values()))
    table = amplification_sweep(vlm, run, {"order": every}, [alpha], ids, ("answer",), progress=False)
    wide = table.pivot(index="pair", columns="edit", values="is_top")
    return pd.DataFrame(
        {
            "scene": index,
            "form": [fact.form for fact in facts],
            "before": wide["none"].to_numpy(bool),
            "after": wide["order"].to_numpy(bool),
        }
    )


def unenhanced(results: pd.DataFrame) -> pd.DataFrame:
    """The same items without enhancement, as rows of condition "none" at alpha 0."""
    once = results.drop_duplicates("item")
    return once.assign(condition="none", alpha=0.0, after=once["before"], p_after=once["p_before"])


def long_form(scores: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Columns of `score` in long form: condition, alpha where there is one, measure, value, low, high."""
    keys = [key for key in ("condition", "alpha") if key in scores]
    parts = []
    for name in names:
        bounds = ("low", "high") if name == "strict_accuracy" else (f"{name}_low", f"{name}_high")
        part = scores[[*keys, name, *bounds]].set_axis([*keys, "value", "low", "high"], axis=1)
        parts.append(part.assign(measure=name))
    return pd.concat(parts, ignore_index=True)


# --- choosing alpha -----------------------------------------------------------------------------------------

AIMS = {  # what the chosen alpha maximises
    "repaired": lambda cell: _average(cell[~cell["before"]]),  # as in the paper, breakage not counted
    "net": lambda cell: _average(cell),
}


def _average(cell: pd.DataFrame) -> float:
    """The weighted share of correct answers, NaN without rows."""
    return float(np.average(cell["after"], weights=weights(cell))) if len(cell) else np.nan


def best_alpha(results: pd.DataFrame, aim: str = "net") -> float:
    """The alpha of one condition that is best by an aim; among equals the smallest."""
    values = {alpha: AIMS[aim](cell) for alpha, cell in results.groupby("alpha")}
    return max(sorted(values, key=abs), key=lambda alpha: np.nan_to_num(values[alpha], nan=-1.0))


def in_sample(results: pd.DataFrame, aim: str = "net") -> pd.DataFrame:
    """Rows of each condition at the alpha that is best on these same items, as in the paper."""
    chosen = results.groupby("condition", sort=False)
    return pd.concat(cell[cell["alpha"] == best_alpha(cell, aim)] for _, cell in chosen)


def cross_fitted(results: pd.DataFrame, aim: str = "net", folds: int = 2, seed: int = 0) -> pd.DataFrame:
    """Rows of each condition at the alpha chosen on the other folds; folds are of whole scenes."""
    scenes = np.unique(results["scene"])
    folds_of_scenes = np.random.default_rng(seed).permutation(len(scenes)) % folds
    fold = folds_of_scenes[np.searchsorted(scenes, results["scene"])]
    parts = []
    for _, cell in results.assign(fold=fold).groupby("condition", sort=False):
        for k in range(folds):
            alpha = best_alpha(cell[cell["fold"] != k], aim)
            parts.append(cell[(cell["fold"] == k) & (cell["alpha"] == alpha)])
    return pd.concat(parts)


def per_item(results: pd.DataFrame) -> pd.DataFrame:
    """Every item at its own best alpha, chosen by its answer: an upper bound that cannot be reached in practice."""
    best = results.sort_values(["after", "p_after"], ascending=False, kind="stable")
    return best.drop_duplicates(["condition", "item"]).sort_values(["condition", "item"])


# --- enhancement of a model's own generate call ---------------------------------------------------------------


@contextmanager
def enhance(vlm: VLM, directions: Float[Tensor, "direction hidden"], alpha: float) -> Iterator[None]:
    """Amplify directions in all image tokens of everything `vlm.model` does inside the block, `generate` included.

    The change is made to the projector's output, which is slot 0 at the image tokens of every family. The hook is
    removed on leaving the block, also after an exception. With alpha = 0 outputs are bitwise unchanged.
    """
    width, wide = vlm.language.config.hidden_size, vlm.language.wide_because
    if wide:
        raise UserError(f"Image tokens of {vlm.name} cannot be amplified at one slot: {wide}.")
    if directions.ndim != 2 or directions.shape[1] != width:
        raise UserError(f"{vlm.name} needs directions of shape [direction, {width}], not {list(directions.shape)}.")
    with hooks(on_output(vlm.projector, lambda tokens: amplify(tokens, directions, alpha))):
        yield
