"""Linear probes of place and relation at the slots of the backbone (PROTOCOL.md 3 and 6; floor 3).

Probes are trained on `lines`: all six orders of some sets of three entities, so that no entity is tied to a place.
Sets are split whole between training and testing. With order removed from the embeddings a probe at slot 0 can then
be right in exactly 1/3 (place) or 1/2 (relation) of the cases, whatever it learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from lib.analysis import probes, statistics
from lib.analysis.line_images import Lines
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.interventions import (
    Run,
    tokens_at,
)
from lib.stimuli.questions import neighbour_question
from lib.stimuli.scenes import entities

RELATION_FORMS = ("difference", "concatenation")

# --- lines: every order of some sets of entities --------------------------------------------------------------


def lines(vlm: VLM, setting: str, orientation: str, sets: int = 20, seed: int = 0) -> Lines:
    """All six orders of randomly chosen sets of three entities (20 sets: 120 images, as in PROTOCOL.md 3)."""
    every = list(combinations(entities(setting, vlm.grid), 3))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(every))[:sets])
    return Lines.of(vlm, setting, [order for k in chosen for order in permutations(every[k])], orientation)


def object_states(vlm: VLM, pictures: Lines, slots: Iterable[int] | None = None) -> dict[int, probes.Objects]:
    """The residual stream of the objects' tokens at slots 0..L-1; see `tokens_at`."""
    question = neighbour_question(pictures.setting, "left", entities(pictures.setting, vlm.grid)[0])
    run = Run.of(vlm, [question] * len(pictures.images), pictures.images)
    states = tokens_at(vlm, run, slots, pictures.places.ravel())
    local = np.arange(pictures.places.size).reshape(pictures.places.shape)
    return {slot: probes.Objects.of(state, local, pictures.entities) for slot, state in states.items()}


# --- place ----------------------------------------------------------------------------------------------------


def dealt(count: int, folds: int, seed: int = 0) -> list[Int[np.ndarray, " member"]]:
    """The numbers 0..count-1 dealt at random into folds of about equal size."""
    return np.array_split(np.random.default_rng(seed).permutation(count), folds)


def place_probes(
    objects: probes.Objects,
    sets: Int[np.ndarray, " image"],
    recipes: Sequence[str] = probes.RECIPES,
    folds: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Ordinal place, cross-validated: every set of three and every entity is held out once.

    Each fold tests on sets the probe never saw, and (test `entities`) on the objects in them that belong to entities it
    never saw. Rows and tests are those of `probes.evaluate`, with a column `set`: the unit for intervals, as the six
    orders of a set are no independent pictures.
    """
    groups, kinds = len(np.unique(sets)), objects.entity.max() + 1
    parts = []
    for fold, (tested, unseen) in enumerate(zip(dealt(groups, folds, seed), dealt(kinds, folds, seed), strict=True)):
        test = np.isin(sets, tested)
        parts.append(
            probes.evaluate(
                objects, np.flatnonzero(~test), np.flatnonzero(test), recipes, unseen, seed=seed * folds + fold
            )
        )
    return with_sets(parts, sets)


def with_sets(parts: list[pd.DataFrame], sets: Int[np.ndarray, " image"]) -> pd.DataFrame:
    """The parts as one table, the number of each row's set beside that of its image."""
    table = pd.concat(parts, ignore_index=True)
    return table.assign(set=np.asarray(sets)[table["image"].to_numpy()])


def content_independence(table: pd.DataFrame, seed: int = 0) -> dict[str, statistics.Estimate]:
    """C2 from the rows of one setting and recipe (columns orientation, image, entity, test, correct).

    probe_held_out: accuracy on entities the probe never saw. probe_selectivity: that minus the control task's accuracy
    on the same objects. The claim is about entities never seen, so whole entities are resampled, with all pictures of
    theirs: there are only six to eight.
    """
    keys = ["entity", "orientation", "image"]
    means = table.groupby([*keys, "test"])["correct"].mean().unstack("test").dropna(subset="entities")
    entities = means.index.get_level_values("entity")
    return {
        "probe_held_out": statistics.mean(means["entities"], units=entities, seed=seed),
        "probe_selectivity": statistics.mean(means["entities"] - means["control"], units=entities, seed=seed),
    }


# --- relation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relations:
    """Ordered pairs (a, b) of objects of one image; `before`: does a come before b along the axis?"""

    x: Float[torch.Tensor, "row hidden"]
    image: Int[np.ndarray, " row"]
    first: Int[np.ndarray, " row"]  # number of entity a
    second: Int[np.ndarray, " row"]  # number of entity b
    before: Int[np.ndarray, " row"]

    @classmethod
    def of(cls, objects: probes.Objects, form: str = "difference") -> Relations:
        """From the mean vectors of the two objects' tokens: their difference, or the two side by side."""
        if form not in RELATION_FORMS:
            raise UserError(f"form must be one of {', '.join(RELATION_FORMS)}, not {form!r}")
        tokens = len(objects.x) // len(np.unique(objects.units))
        mean = objects.x.reshape(-1, 3, tokens, objects.x.shape[-1]).mean(2)
        entity = objects.entity[::tokens].reshape(-1, 3)
        a, b = np.array(list(permutations(range(3), 2))).T
        x = mean[:, a] - mean[:, b] if form == "difference" else torch.cat([mean[:, a], mean[:, b]], -1)
        image = np.repeat(np.arange(len(mean)), len(a))
        return cls(x.flatten(0, 1), image, entity[:, a].ravel(), entity[:, b].ravel(), np.tile(a < b, len(mean)) * 1)

    def rows(self, mask) -> Relations:
        mask = np.asarray(mask)
        members = (self.image, self.first, self.second, self.before)
        return Relations(self.x[torch.as_tensor(mask)], *(member[mask] for member in members))


def relation_probes(
    relations: Relations, sets: Int[np.ndarray, " image"], recipe: str = "logistic", folds: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Is a before b? Columns test, image, correct (share of the image's pairs read right), set (see `place_probes`).

    held_out: sets of three never seen. shuffled: the same, labels of training dealt anew. control: the same, but the
    label is a random ranking of the entities, which says nothing about the picture. entities: both entities never
    seen, in images that training never saw.
    """
    groups, kinds = len(np.unique(sets)), int(relations.first.max()) + 1
    rng, parts = np.random.default_rng(seed), []
    for tested in dealt(groups, folds, seed):
        test = np.isin(sets[relations.image], tested)
        rank = rng.permutation(kinds)
        ranked = (rank[relations.first] < rank[relations.second]) * 1
        parts += [
            _relation(relations, relations.before, ~test, test, recipe).assign(test="held_out"),
            _relation(relations, ranked, ~test, test, recipe).assign(test="control"),
            _relation(relations, relations.before, ~test, test, recipe, rng).assign(test="shuffled"),
        ]
    for unseen in dealt(kinds, kinds // 2, seed):
        new = np.isin(relations.first, unseen) * 1 + np.isin(relations.second, unseen)
        images = np.unique(relations.image[new == 2])
        inside = np.isin(relations.image, images)
        if len(images):
            found = _relation(relations, relations.before, (new == 0) & ~inside, new == 2, recipe)
            parts.append(found.assign(test="entities"))
    return with_sets(parts, sets)


def _relation(relations: Relations, labels, train, test, recipe: str, shuffle=None) -> pd.DataFrame:
    """One probe: share right per test image; `shuffle` deals training labels anew."""
    taught = labels[train] if shuffle is None else shuffle.permutation(labels[train])
    probe = probes.train(relations.x[torch.as_tensor(train)], taught, 2, recipe)
    right = probe.probabilities(relations.x[torch.as_tensor(test)]).argmax(-1).cpu().numpy() == labels[test]
    table = pd.DataFrame({"image": relations.image[test], "correct": right.astype(float)})
    return table.groupby("image", as_index=False).mean()
