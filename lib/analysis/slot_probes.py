"""Linear probes of place and relation at the slots of the backbone (PROTOCOL.md 3 and 6; floor 3).

Probes are trained on `all_orders` of some sets of three entities, so that no entity is tied to a place. A set goes as a
whole into training or into testing. If order has been removed from the embeddings, a probe at slot 0 is then correct in
exactly 1/3 (place) or 1/2 (relation) of the cases, whatever it has learned.
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
from lib.analysis.line_images import LineImages
from lib.engine.vlm import VLM
from lib.patching.runs import Run, tokens_at
from lib.stimuli.questions import neighbour_question
from lib.stimuli.scenes import entities

# --- data -----------------------------------------------------------------------------------------------------


def all_orders(vlm: VLM, setting: str, orientation: str, sets: int = 20, seed: int = 0) -> LineImages:
    """All six orders of randomly chosen sets of three entities (20 sets: 120 images, as in PROTOCOL.md 3)."""
    every = list(combinations(entities(setting, vlm.grid), 3))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(every))[:sets])
    return LineImages.of(vlm, setting, [order for k in chosen for order in permutations(every[k])], orientation)


def object_states(vlm: VLM, lines: LineImages, slots: Iterable[int] | None = None) -> dict[int, probes.ObjectTokens]:
    """The residual stream of the objects' tokens at slots 0..L-1; see `tokens_at`."""
    question = neighbour_question(lines.setting, "left", entities(lines.setting, vlm.grid)[0])
    run = Run.of(vlm, [question] * len(lines.images), lines.images)
    width = vlm.language.config.hidden_size  # without what later layers will add
    states = tokens_at(vlm, run, slots, lines.place_tokens.ravel())
    local = np.arange(lines.place_tokens.size).reshape(lines.place_tokens.shape)  # rows of `states`, place by place
    return {slot: probes.ObjectTokens.of(state[..., :width], local, lines.entities) for slot, state in states.items()}


# --- place ----------------------------------------------------------------------------------------------------


def random_folds(count: int, folds: int, seed: int = 0) -> list[Int[np.ndarray, " member"]]:
    """The numbers 0..count-1 at random in folds of about equal size."""
    return np.array_split(np.random.default_rng(seed).permutation(count), folds)


def place_probes(
    objects: probes.ObjectTokens,
    sets: Int[np.ndarray, " image"],
    recipes: Sequence[str] = probes.RECIPES,
    folds: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Probes of the ordinal place, cross-validated so that every set of three and every entity is held out once.

    Each fold tests on sets the probe has not seen, and (test `entities`) on those of their objects whose entity it has
    not seen. Rows and tests are those of `probes.evaluate`, with a column `set`, the unit for intervals: the six
    orders of a set are not independent pictures.
    """
    held_out_sets = random_folds(len(np.unique(sets)), folds, seed)
    held_out_entities = random_folds(objects.entity.max() + 1, folds, seed)
    parts = []
    for fold, (tested, unseen) in enumerate(zip(held_out_sets, held_out_entities, strict=True)):
        test = np.isin(sets, tested)
        train_images, test_images = np.flatnonzero(~test), np.flatnonzero(test)
        fold_seed = seed * folds + fold
        parts.append(probes.evaluate(objects, train_images, test_images, recipes, unseen, seed=fold_seed))
    return with_sets(parts, sets)


def with_sets(parts: list[pd.DataFrame], sets: Int[np.ndarray, " image"]) -> pd.DataFrame:
    """The parts as one table, with a column for the set of each row's image."""
    table = pd.concat(parts, ignore_index=True)
    return table.assign(set=np.asarray(sets)[table["image"].to_numpy()])


def order_readable(
    vlm: VLM, table: pd.DataFrame, lines: Sequence[LineImages], seed: int = 0
) -> dict[str, statistics.Estimate]:
    """Claim C2 for one setting: accuracy of the logistic probe for seen entities, unseen entities, unseen places.

    table: rows of `place_probes` by that recipe (columns orientation, set, entity, test, correct). lines: the pictures
    they rest on, one per axis. What is resampled: whole sets of three, all orders together; for unseen entities whole
    entities, each with all pictures that show it.
    """
    seen, unseen = (table[table["test"] == test] for test in ("held_out", "entities"))
    elsewhere = pd.concat([unseen_places(vlm, each).assign(orientation=each.orientation) for each in lines])
    return {
        "probe_seen_entities": statistics.mean(seen["correct"], units=seen["set"], seed=seed),
        "probe_unseen_entities": statistics.mean(unseen["correct"], units=unseen["entity"], seed=seed),
        "probe_unseen_places": statistics.mean(elsewhere["correct"], units=elsewhere["set"], seed=seed),
    }


def unseen_places(vlm: VLM, lines: LineImages) -> pd.DataFrame:
    """The probe of all pictures, on the same lines where none of them stood: image, place, entity, correct, set.

    Entities stand one token closer together and the line at either end of the canvas, so that order in the line and
    place on the canvas disagree. The sets are those of training: nothing but the place is new.
    """
    probe = probes.train(lines.objects.x, lines.objects.place, 3, "logistic")
    moved = moved_lines(vlm, lines)
    return pd.concat([with_sets([probes.score(probe, each.objects)], each.sets) for each in moved], ignore_index=True)


def unseen_places_by_slot(vlm: VLM, lines: LineImages) -> pd.DataFrame:
    """`unseen_places` at the slots 0..L-1 of the backbone, with a probe of its own at each: columns as there, slot."""
    elsewhere, parts = [(each.sets, object_states(vlm, each)) for each in moved_lines(vlm, lines)], []
    for slot, objects in object_states(vlm, lines).items():
        probe = probes.train(objects.x, objects.place, 3, "logistic")
        found = [with_sets([probes.score(probe, states[slot])], sets) for sets, states in elsewhere]
        parts += [rows.assign(slot=slot) for rows in found]
    return pd.concat(parts, ignore_index=True)


def moved_lines(vlm: VLM, lines: LineImages) -> list[LineImages]:
    """The same lines at either end of the canvas, their entities one token closer together."""
    gap = max(lines.grid.gap - 1, 0)
    spare = (lines.grid.side - 3 * lines.grid.entity - 2 * gap) // 2
    setting, triples, axis = lines.setting, lines.triples, lines.orientation
    return [LineImages.of(vlm, setting, triples, axis, gap, along) for along in (-spare, spare)]


# --- relation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relations:
    """Ordered pairs (a, b) of objects of one image, one row per pair; before: 1 if a comes before b along the axis."""

    x: Float[torch.Tensor, "row hidden"]
    image: Int[np.ndarray, " row"]
    first: Int[np.ndarray, " row"]  # number of entity a
    second: Int[np.ndarray, " row"]  # number of entity b
    before: Int[np.ndarray, " row"]

    @classmethod
    def of(cls, objects: probes.ObjectTokens) -> Relations:
        """x is the difference of the mean vectors of the two objects' tokens."""
        tokens = len(objects.x) // len(np.unique(objects.units))
        mean = objects.x.reshape(-1, 3, tokens, objects.x.shape[-1]).mean(2)
        entity = objects.entity[::tokens].reshape(-1, 3)
        a, b = np.array(list(permutations(range(3), 2))).T
        x = (mean[:, a] - mean[:, b]).flatten(0, 1)
        image = np.repeat(np.arange(len(mean)), len(a))
        return cls(x, image, entity[:, a].ravel(), entity[:, b].ravel(), np.tile(a < b, len(mean)) * 1)


def relation_probes(
    relations: Relations, sets: Int[np.ndarray, " image"], recipe: str = "logistic", folds: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Is a before b? Columns test, image, correct (share of the image's pairs), set (see `place_probes`).

    held_out: sets of three that were not seen in training. shuffled: the same, with shuffled training labels. control:
    the same, but the label is a random ranking of the entities, which does not depend on the picture. entities: pairs
    of two entities that were not seen, in images that were not seen.
    """
    groups, kinds = len(np.unique(sets)), int(relations.first.max()) + 1
    rng, parts = np.random.default_rng(seed), []
    for tested in random_folds(groups, folds, seed):
        test = np.isin(sets[relations.image], tested)
        rank = rng.permutation(kinds)
        ranked = (rank[relations.first] < rank[relations.second]) * 1
        parts += [
            _relation(relations, relations.before, ~test, test, recipe).assign(test="held_out"),
            _relation(relations, ranked, ~test, test, recipe).assign(test="control"),
            _relation(relations, relations.before, ~test, test, recipe, rng).assign(test="shuffled"),
        ]
    for unseen in random_folds(kinds, kinds // 2, seed):
        new = np.isin(relations.first, unseen) * 1 + np.isin(relations.second, unseen)
        images = np.unique(relations.image[new == 2])
        inside = np.isin(relations.image, images)
        if len(images):
            found = _relation(relations, relations.before, (new == 0) & ~inside, new == 2, recipe)
            parts.append(found.assign(test="entities"))
    return with_sets(parts, sets)


def _relation(relations: Relations, labels, train, test, recipe: str, shuffle=None) -> pd.DataFrame:
    """Share of correct pairs per test image of one probe; shuffle: a generator that shuffles the training labels."""
    training_labels = labels[train] if shuffle is None else shuffle.permutation(labels[train])
    probe = probes.train(relations.x[torch.as_tensor(train)], training_labels, 2, recipe)
    correct = probe.probabilities(relations.x[torch.as_tensor(test)]).argmax(-1).cpu().numpy() == labels[test]
    table = pd.DataFrame({"image": relations.image[test], "correct": correct.astype(float)})
    return table.groupby("image", as_index=False).mean()
