"""The ladder: what the ordering ablation takes away, one thing at a time (PROTOCOL.md 9.3).

Four steps, each of which takes more from the image tokens of a picture of three entities in a line:

- intact: nothing is taken;
- empty background: tokens outside the objects come from the empty canvas, which takes what the background knows;
- own place: every object's tokens come from a picture in which it stands alone at its own place, which takes what
  objects know of each other;
- middle: every object's tokens come from a picture in which it stands alone in the middle (the paper's ordering
  ablation), which takes where it stands.

What is left after the last step comes from the places of tokens in the language model's input, or from whatever the
empty canvas itself carries: a code of place on the background that is there without any object stays where it is (the
planted model `strip_code` keeps all its answers). It does not come from what the encoder made of these objects' places.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.analysis import statistics
from lib.analysis.ablation import answers
from lib.analysis.studies import Study, require_centred
from lib.engine.vlm import VLM
from lib.stimuli.grids import Grid
from lib.stimuli.questions import Item
from lib.stimuli.scenes import Entity, Scene, line_scene
from lib.stimuli.token_sets import background, object_tokens

STEPS = ("intact", "empty background", "own place", "middle")
STEP_OF = {"order_lost_named": "middle", "order_lost_own_place": "own place", "order_left_named": "middle"}  # C5

# --- the steps ------------------------------------------------------------------------------------------------


def alone(item: Item, grid: Grid, entity: Entity | None, place: int = 1) -> Scene:
    """The item's canvas with one entity at a place (0, 1, 2) of its line, or empty."""
    members: list[Entity | None] = [None, None, None]
    members[place] = entity
    return line_scene(tuple(members), grid, item.orientation, item.shift, item.scene.backdrop)


def needed(item: Item, grid: Grid) -> list[Scene]:
    """The pictures of an item's ladder: empty, each entity alone at its own place, each alone in the middle."""
    own = [alone(item, grid, entity, place) for place, entity in enumerate(item.entities)]
    middle = [alone(item, grid, entity) for entity in item.entities]
    return [alone(item, grid, None), *own, *middle]


def rebuilt(item: Item, grid: Grid, intact: Tensor, parts: Tensor) -> dict[str, Tensor]:
    """Image tokens [image_token, hidden] of an item after each step but the first.

    intact: those of its picture; parts: those of the pictures that `needed` names, in that order.
    """
    empty, own, middle = parts[0], parts[1:4], parts[4:7]
    objects = [torch.from_numpy(object_tokens(grid, item.orientation, place)) for place in range(3)]
    rest = torch.from_numpy(background(grid, item.orientation))
    out = {"empty background": intact.clone(), "own place": empty.clone(), "middle": empty.clone()}
    out["empty background"][rest] = empty[rest]
    for place, tokens in enumerate(objects):
        out["own place"][tokens] = own[place][tokens]
        out["middle"][tokens] = middle[place][objects[1]]
    return out


def steps(plain: Study, progress: bool = False) -> dict[str, Study]:
    """The study of the same pairs after every step; lines must be centred."""
    require_centred(plain.pairs)
    vlm, grid = plain.vlm, plain.vlm.grid
    items = [(pair.clean, int(row)) for pair, row in zip(plain.pairs, plain.clean.index, strict=True)]
    items += [
        (pair.counterfactual, int(row)) for pair, row in zip(plain.pairs, plain.counterfactual.index, strict=True)
    ]
    first = {row: item for item, row in reversed(items)}  # one item stands for all with the same picture
    scenes = [scene for item in first.values() for scene in needed(item, grid)]
    images, index = vlm.distinct([scene.image(grid.canvas) for scene in scenes], progress)
    index = torch.from_numpy(index.reshape(len(first), -1))
    built = [
        rebuilt(item, grid, plain.clean.images[row], images[own])
        for (row, item), own in zip(first.items(), index, strict=True)
    ]
    place = {row: number for number, row in enumerate(first)}
    out = {"intact": plain}
    for step in STEPS[1:]:
        stacked = torch.stack([each[step] for each in built])
        runs = [
            replace(run, images=stacked, index=np.array([place[int(row)] for row in run.index]))
            for run in (plain.clean, plain.counterfactual)
        ]
        out[step] = replace(plain, clean=runs[0], counterfactual=runs[1])
    return out


# --- what is left after each ----------------------------------------------------------------------------------


def left(studies: dict[str, Study]) -> pd.DataFrame:
    """Both runs of every pair after every step, each as a question of its own.

    Columns of `ablation.answers`, step, and names_neither: the most probable token of the whole vocabulary is neither
    the target nor its opposite.
    """
    parts = []
    for step, each in studies.items():
        top = each.baselines[each.baselines["role"].isin(each.roles[:2])].groupby(["pair", "run"])["is_top"].any()
        table = answers(each).merge((~top).rename("names_neither").reset_index(), on=["pair", "run"])
        parts.append(table.assign(step=step))
    return pd.concat(parts, ignore_index=True)


def _sums(table: pd.DataFrame, step: str) -> tuple[np.ndarray, np.ndarray]:
    """Per couple: sum over the runs of its pairs of P(target) - P(opposite), and of P(target) + P(opposite)."""
    own = table[table["step"] == step]
    both = own.assign(named=own["target"] + own["opposite"]).groupby("couple")[["order", "named"]].sum()
    return both["order"].to_numpy(), both["named"].to_numpy()


def order_named(table: pd.DataFrame, step: str, seed: int = 0) -> statistics.Estimate:
    """P(target) - P(opposite) among the probability of these two answers: a ratio of means over pairs, -1..1.

    0 exactly where the answer does not depend on the order at all, because the two runs of a pair are mirror images.
    Below 0 it does depend on it, and leans to the wrong one of the two.
    """
    return statistics.ratio(*_sums(table, step), seed=seed)


def lost_named(table: pd.DataFrame, step: str, seed: int = 0) -> statistics.Estimate:
    """Share of the intact picture's `order_named` that is gone after a step; answers naming neither do not count."""

    def lost(before, named_before, after, named_after):
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - (after.mean() / named_after.mean()) / (before.mean() / named_before.mean())

    return statistics.bootstrap(lost, *_sums(table, STEPS[0]), *_sums(table, step), seed=seed)


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The published form: setting, orientation, step, measure, n, value, low, high; intervals over couples.

    Measures: order (P(target) - P(opposite)), named (`order_named`), correct, names_neither.
    """
    rows = []
    for (setting, orientation), cell in table.groupby(["setting", "orientation"], sort=False):
        for step in dict.fromkeys(cell["step"]):
            own = cell[cell["step"] == step]
            found = {
                measure: statistics.mean(own[measure].astype(float), units=own["couple"], seed=seed)
                for measure in ("order", "correct", "names_neither")
            }
            found["named"] = order_named(cell, step, seed)
            rows += [(setting, orientation, step, name, x.n, x.value, x.low, x.high) for name, x in found.items()]
    return pd.DataFrame(rows, columns=["setting", "orientation", "step", "measure", "n", "value", "low", "high"])


def claims(table: pd.DataFrame, seed: int = 0) -> dict[str, statistics.Estimate]:
    """The metrics of C5 (docs/RULES.md) from the rows of one setting and axis."""
    of = {"order_lost_named": lost_named, "order_lost_own_place": lost_named, "order_left_named": order_named}
    return {metric: measured(table, STEP_OF[metric], seed) for metric, measured in of.items()}


def names_candidate(table: pd.DataFrame, metric: str) -> float:
    """Share of answers that name the target or its opposite after the step that a metric of C5 is about.

    table: the rows of one setting and axis. Where it is small the model is confused, and the metric not testable.
    """
    return 1 - float(table.loc[table["step"] == STEP_OF[metric], "names_neither"].mean())


def in_words(table: pd.DataFrame, seed: int = 0) -> str:
    """The metrics of C5 in one line, with the share of answers that name a candidate; table: as for `claims`."""
    found = claims(table, seed)
    values = {key: statistics.in_figures(x.value, x.low, x.high) for key, x in found.items()}
    share = {key: f"{names_candidate(table, key):.2f} of answers name a candidate" for key in found}
    return (
        f"n = {found['order_left_named'].n} pairs; every object alone at its own place: lost "
        f"{values['order_lost_own_place']} ({share['order_lost_own_place']}); alone in the middle: lost "
        f"{values['order_lost_named']}, left {values['order_left_named']} ({share['order_left_named']})"
    )


# --- place-blindness ------------------------------------------------------------------------------------------


def place_dependence(vlm: VLM, entities: tuple[Entity, ...]) -> pd.DataFrame:
    """How much an object's tokens depend on where it stands alone: columns orientation, entity, difference.

    difference: distance between its tokens at the first or the last place and those in the middle, mean of both, as a
    share of their mean norm. An encoder that is blind to the place of a lone thing gives 0.
    """
    grid, rows = vlm.grid, []
    for orientation in ("horizontal", "vertical"):
        pictures = []
        for entity in entities:
            for place in range(3):
                members = tuple(entity if k == place else None for k in range(3))
                pictures.append(line_scene(members, grid, orientation).image(grid.canvas))
        tokens = vlm.encode(pictures).float()
        for number, entity in enumerate(entities):
            first, middle, last = (
                tokens[3 * number + place][torch.from_numpy(object_tokens(grid, orientation, place))]
                for place in range(3)
            )
            scale = torch.stack([first, middle, last]).norm(dim=-1).mean()
            apart = torch.stack([first - middle, last - middle]).norm(dim=-1).mean()
            rows.append((orientation, str(entity), float(apart / scale)))
    return pd.DataFrame(rows, columns=["orientation", "entity", "difference"])
