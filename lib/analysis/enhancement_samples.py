"""Which items an enhancement is tried on, and what could have been found with so many (docs/RULES.md, C7).

A model that answers most items correctly fails rarely, so items are asked in batches of new scenes until each axis has
enough failures. An enhancement is then tried on all of these failures and on a random sample of the items that were
answered correctly, each of which stands for several: its weight, which `enhancement.score` takes into account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from lib.analysis import enhancement, statistics
from lib.analysis.enhancement import ItemRun
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.stimuli.grids import ORIENTATIONS
from lib.stimuli.questions import PHRASE, Item, SideItem

BOTH = "both"  # both axes together, beside the names of the two


def survey(
    vlm: VLM, draw: Callable[[int], Sequence], failures: int, batches: int, form: str = "", progress: bool = False
) -> pd.DataFrame:
    """Items asked without enhancement, batch after batch, until every axis has so many failures or batches run out.

    draw: the items of batch 0, 1, ...; of an axis that has its failures no further items are asked. Every batch that
    was begun is finished, so that the share of failures is that of whole batches. Columns: item, axis, batch, scene,
    correct.
    """
    parts: list[pd.DataFrame] = []
    for batch in range(batches):
        failed = [axis for part in parts for axis in part.loc[~part["correct"], "axis"]]
        items = [item for item in draw(batch) if failed.count(item.orientation) < failures]
        if not items:
            break
        asked = enhancement.item_run(vlm, items, form, progress)
        scenes = [f"{batch} {scene}" for scene in asked.scene]
        columns = {"axis": asked.axis, "batch": batch, "scene": scenes, "correct": enhancement.correct(asked)}
        parts.append(pd.DataFrame({"item": pd.Series(items, dtype=object), **columns}))
    if not parts:
        raise UserError(f"{vlm.name}: there are no items to ask about.")
    return pd.concat(parts, ignore_index=True)


def sample(table: pd.DataFrame, failures: int, right: int, seed: int = 0) -> pd.DataFrame:
    """At most so many failures and so many correct answers of each axis, at random, in the order of the table.

    table: columns axis, correct and, if it is a sample itself, weight. Adds or changes `weight`: how many items of the
    first table each row stands for.
    """
    rng, parts = np.random.default_rng(seed), []
    before = table.get("weight", pd.Series(1.0, index=table.index))
    for (_, correct), cell in table.assign(weight=before).groupby(["axis", "correct"], sort=True):
        kept = np.sort(rng.permutation(len(cell))[: right if correct else failures])
        if len(kept):
            parts.append(cell.iloc[kept].assign(weight=cell["weight"].iloc[kept] * len(cell) / len(kept)))
    return pd.concat(parts).sort_index()


def sampled_run(vlm: VLM, chosen: pd.DataFrame, form: str = "") -> ItemRun:
    """The items of a sample as a run, with their weights."""
    asked = enhancement.item_run(vlm, list(chosen["item"]), form)
    return replace(asked, weight=chosen["weight"].to_numpy())


def fewer(asked: ItemRun, chosen: pd.DataFrame, failures: int, right: int, seed: int = 0) -> ItemRun:
    """A part of a sampled run, with weights of its own; chosen: its sample, row by row."""
    part = sample(chosen.reset_index(drop=True), failures, right, seed)
    return replace(asked.rows(part.index.to_numpy()), weight=part["weight"].to_numpy())


def one_token(vlm: VLM) -> Callable[[str], bool]:
    """Whether a model has a name as one token, as answers must be: for `photographs.whatsup(keep=...)`."""

    def known(name: str) -> bool:
        try:
            vlm.candidates([[name]])
        except UserError:
            return False
        return True

    return known


def words(item: Item | SideItem) -> str:
    """What is true in the item's picture, in a few words."""
    if isinstance(item, SideItem):
        return f"{item.subject} {PHRASE[item.relation]} {item.reference}"
    return f"{item.question} {item.answer}"


# --- order, or place on the canvas -----------------------------------------------------------------------------


def order_or_place(asked: ItemRun, directions: enhancement.Directions, learned: ItemRun) -> pd.DataFrame:
    """Is each object read by its order within the item, or by the half of the picture in which it stands?

    An object counts as read as last if its mean embedding lies, along directions (last minus first), beyond the
    midpoint of the objects of `learned`, the items from which they were learned. One row per object that does not stand
    on the middle of its axis: axis, scene, weight, conflict (the first object stands in the farther half, or the last
    in the nearer), as_order (1 where it is read as its order, 0 where as the opposite). A code of order alone gives
    as_order 1 in conflict, a code of place alone 0.
    """
    side, grids = asked.vlm.grid.side, {"horizontal": np.mod, "vertical": np.floor_divide}
    centre, parts = enhancement.object_means(learned), []
    for axis in np.unique(asked.axis):
        along = directions[axis].cpu().float()
        midpoint = centre[torch.as_tensor(learned.axis == axis)].mean((0, 1))
        own = np.flatnonzero(asked.axis == axis)
        read = ((enhancement.object_means(asked)[own] - midpoint) @ (along[1] - along[0]) > 0).numpy()
        ends = [enhancement.end_tokens(asked.items[k], asked.vlm.grid) for k in own]
        far = np.array([[grids[axis](tokens, side).mean() - (side - 1) / 2 for tokens in both] for both in ends])
        last = np.array([False, True])
        columns = {"conflict": (far > 0) != last, "as_order": (read == last).astype(float), "far": far}
        weight = np.ones(len(asked)) if asked.weight is None else asked.weight
        rows = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
        rows = rows.assign(axis=axis, scene=np.repeat(asked.scene[own], 2), weight=np.repeat(weight[own], 2))
        parts.append(rows[rows["far"] != 0].drop(columns="far"))
    return pd.concat(parts, ignore_index=True)


# --- what is found, axis by axis --------------------------------------------------------------------------------


def beyond_random(results: pd.DataFrame, condition: str, seed: int = 0) -> dict[str, statistics.Estimate]:
    """`enhancement.beyond_random` along each axis and, if there are two, along both; each failure counts once."""
    axes = [axis for axis in ORIENTATIONS if (results["axis"] == axis).any()]
    parts = {axis: results[results["axis"] == axis] for axis in axes}
    parts |= {BOTH: results} if len(axes) > 1 else {}
    return {name: enhancement.beyond_random(part, condition, seed) for name, part in parts.items()}


def power_table(results: pd.DataFrame, found: dict[str, statistics.Estimate], condition: str) -> pd.DataFrame:
    """What was compared, and the smallest difference that would have been found: a row per axis and one for both.

    Columns failures, scenes, repaired and random (shares of the failures; mean over the random sets), random_low and
    random_high (the worst and the best set), difference with low and high, detectable (80 % power), p (rank of the
    condition among the sets).
    """
    rows, failed = {}, results[~results["before"]]
    for name, estimate in found.items():
        part = failed if name == BOTH else failed[failed["axis"] == name]
        share = part.groupby("condition")["after"].mean()
        sets = share[share.index.str.startswith("random")]
        own = float(share.get(condition, np.nan))
        rows[name] = {
            "failures": estimate.n,
            "scenes": part["scene"].nunique(),
            "repaired": own,
            "random": sets.mean(),
            "random_low": sets.min(),
            "random_high": sets.max(),
            "difference": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "detectable": statistics.detectable(estimate),
            "p": statistics.rank_p(own, sets) if estimate.n else np.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def power_sentence(name: str, estimate: statistics.Estimate, verdict: str) -> str:
    """One line of the power table in words."""
    if not estimate.n:
        return f"{name}: no failures, nothing to repair ({verdict})."
    value, low, high = (round(x, 3) + 0.0 for x in (estimate.value, estimate.low, estimate.high))
    return (
        f"{name}: {estimate.n} failures; repaired beyond random {value:+.3f} [{low:.3f}, {high:.3f}], {verdict}; "
        f"a true difference of {statistics.detectable(estimate):.3f} would have been found in four cases of five."
    )
