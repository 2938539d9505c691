"""What the language backbone does with order (floor 3: no files, no plots): peaks of a sweep, probes over slots,
object interchange under the ordering ablation, and what the last token reads.

Probes are trained on `lines`: all six orders of some sets of three entities, so that no entity is tied to a place.
Sets are split whole between training and testing. With order removed from the embeddings a probe at slot 0 can then
be right in exactly 1/3 (place) or 1/2 (relation) of the cases, whatever it learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from lib.analysis import probes, statistics
from lib.analysis.lines import Lines
from lib.analysis.studies import Study, centred, moved, regions
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.interventions import BASELINE, Interchange, Run, ordering_ablation, tokens_at
from lib.stimuli.pairs import Pair
from lib.stimuli.questions import neighbour_question, split
from lib.stimuli.scenes import Grid, entities, line_scene
from lib.stimuli.token_sets import background, object_tokens, random_background

RELATION_FORMS = ("difference", "concatenation")

# --- identities -----------------------------------------------------------------------------------------------


def largest_difference(table: pd.DataFrame, run: str, slots: Iterable[int]) -> float:
    """Largest |P(patched) - P(run)| over pairs and roles at the given slots of a sweep."""
    keys = ["pair", "role"]
    base = table[table["run"] == run].set_index(keys)["probability"]
    patched = table[(table["run"] == "patched") & table["slot"].isin(slots)].set_index(keys)["probability"]
    return float((patched - base.reindex(patched.index)).abs().max())


def hold(differences: dict[str, float], tolerance: float = 1e-4) -> pd.DataFrame:
    """The table of identities; a UserError naming the first one that does not hold."""
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise UserError(
                f"Identity broken: {name} differs by {difference:.1e} (allowed {tolerance:.0e}); stop here."
            )
    return pd.DataFrame({"identity": list(differences), "largest difference": list(differences.values())})


# --- controls for the last token: words without a picture, a picture without new words --------------------------


def on_empty_picture(study: Study) -> Study:
    """The same pairs, but the counterfactual question is asked about an empty canvas.

    The opposite question alone names the other end of the line. What a last token from such a run moves, it has from
    the words, not from an order seen in a picture.
    """
    vlm = study.vlm
    canvas = line_scene((None, None, None), vlm.grid, "horizontal").image(vlm.grid.canvas)
    images = torch.cat([study.clean.images, vlm.encode([canvas])])
    nowhere = np.full(len(study), len(images) - 1)
    counterfactual = replace(study.counterfactual, images=images, index=nowhere)
    return replace(study, clean=replace(study.clean, images=images), counterfactual=counterfactual)


def same_question_pairs(pairs: Sequence[Pair], grid: Grid) -> list[Pair]:
    """Last-token pairs whose counterfactual asks the *same* question of a picture with the reference at the far end.

    Clean as before: (t0, t1, t2), left of t1, answer t0 in the first place. Counterfactual: (t3, t4, t1), left of t1,
    answer t4 in the middle place. Roles: clean t0, order t1 (in the middle of the clean picture), attribute t4.
    """
    out = []
    for pair in pairs:
        clean, other, near = pair.clean, pair.counterfactual, pair.clean.target
        t0, t1, t3, t4 = clean.entities[near], clean.entities[1], other.entities[2 - near], other.entities[near]
        line = (t3, t4, t1) if near == 0 else (t1, t4, t3)
        scene = line_scene(line, grid, clean.orientation)
        moved = replace(
            clean, scene=scene, entities=line, candidates=(t4.name, t3.name, t1.name), target=1, reference=2 - near,
            split=split(clean.setting, line, grid),
        )  # fmt: skip
        out.append(Pair(clean, moved, pair.roles, (t0.name, t1.name, t4.name)))
    return out


# --- peaks ----------------------------------------------------------------------------------------------------


def curves(table: pd.DataFrame, value: str = "probability", **where) -> Float[np.ndarray, "pair slot"]:
    """Patched runs of a sweep as one curve over slots per pair, slots in order; `where` chooses rows (role=...)."""
    chosen = table[table["run"] == "patched"]
    for column, wanted in where.items():
        chosen = chosen[chosen[column] == wanted]
    return chosen.pivot(index="pair", columns="slot", values=value).to_numpy()


def stays_above(curve: Float[np.ndarray, " slot"], level: float = 0.5) -> float:
    """The first slot from which a curve stays above a level to the end; NaN when it ends below."""
    below = np.flatnonzero(~(curve > level))
    first = below[-1] + 1 if len(below) else 0
    return float(first) if first < len(curve) else np.nan


def peaks(table: pd.DataFrame, seed: int = 0) -> dict[str, statistics.Estimate]:
    """Where order and attribute stand in the last token (C1): every resample of pairs finds its own maximum anew.

    order_peak: largest mean P(order) over slots. order_slot, attribute_slot: where mean P(order) and P(attribute) are
    largest. attribute_from: slot from which P(attribute) stays above 1/2; order_before_attribute: minus order_slot.
    """
    both = [curves(table, role=role) for role in ("order", "attribute")]
    found = {
        "order_peak": lambda order, attribute: order.mean(0).max(),
        "order_slot": lambda order, attribute: order.mean(0).argmax(),
        "attribute_slot": lambda order, attribute: attribute.mean(0).argmax(),
        "attribute_from": lambda order, attribute: stays_above(attribute.mean(0)),
        "order_before_attribute": lambda order, attribute: stays_above(attribute.mean(0)) - order.mean(0).argmax(),
    }
    return {name: statistics.bootstrap(statistic, *both, seed=seed) for name, statistic in found.items()}


def backup_peak(table: pd.DataFrame, edit: str = "object", seed: int = 0) -> statistics.Estimate:
    """Largest effect over slots of an edit, minus its effect at slot 0 (C6); the maximum is found in every resample.

    The effect is that of `experiments.effects`: a ratio of means over pairs, clean run 0, counterfactual run 1. Never
    below 0, because slot 0 is among the slots. NaN where the two baselines do not differ.
    """
    cells = moved(table)
    changes, between = (curves(cells, value, edit=edit) for value in ("moved", "between"))

    def largest(changes, between):
        below = between[:, 0].mean()  # the same at every slot
        effect = changes.mean(0) / below if abs(below) > statistics.ROUNDING else np.full(changes.shape[1], np.nan)
        return effect.max() - effect[0]

    return statistics.bootstrap(largest, changes, between, seed=seed)


# --- lines: every order of some sets of entities --------------------------------------------------------------


def lines(vlm: VLM, setting: str, orientation: str, sets: int = 20, seed: int = 0) -> Lines:
    """All six orders of randomly chosen sets of three entities (20 sets: 120 images, as in PROTOCOL.md 3)."""
    every = list(combinations(entities(setting, vlm.grid), 3))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(every))[:sets])
    return Lines.of(vlm, setting, [order for k in chosen for order in permutations(every[k])], orientation)


def without_order(vlm: VLM, pictures: Lines) -> Lines:
    """The same lines after the ordering ablation of PROTOCOL.md 5."""
    single = [(None, entity, None) for entity in entities(pictures.setting, vlm.grid)] + [(None, None, None)]
    alone = Lines.of(vlm, pictures.setting, single, pictures.orientation).images
    places = pictures.places
    return replace(pictures, images=ordering_ablation(alone[:-1], alone[-1], pictures.entities, places, places[1]))


def object_states(vlm: VLM, pictures: Lines, slots: Iterable[int] | None = None) -> dict[int, probes.Objects]:
    """The residual stream of the objects' tokens at slots 0..L-1; see `tokens_at`."""
    question = neighbour_question(pictures.setting, "left", entities(pictures.setting, vlm.grid)[0])
    run = Run.of(vlm, [question] * len(pictures.images), pictures.images)
    states = tokens_at(vlm, run, slots, pictures.places.ravel())
    local = np.arange(pictures.places.size).reshape(pictures.places.shape)
    return {slot: probes.Objects.of(state, local, pictures.entities) for slot, state in states.items()}


# --- probes ---------------------------------------------------------------------------------------------------


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


# --- object interchange under ablation --------------------------------------------------------------------------


def luck(study: Study) -> pd.DataFrame:
    """How often a study is right in the clean run, in the counterfactual run, in both, in neither; per direction.

    Columns direction, n, clean, counterfactual, both, neither, both_minus_neither, low, high. A coin between the two
    entities gives both = neither = 1/4, a fixed preference for one of them 0 and 0: in either case the difference is
    0. A fixed preference for one end of the line gives 1 in one direction and -1 in the opposite one, 0 over all. What
    lies above 0 over all directions is order. Answers that are neither of the two entities push it below 0.
    """
    right = study.right.assign(direction=study.labels["direction"])
    rows = []
    for direction, cell in [*right.groupby("direction", sort=False), ("all", right)]:
        both = (cell["clean"] & cell["counterfactual"]).to_numpy()
        neither = (~cell["clean"] & ~cell["counterfactual"]).to_numpy()
        order = statistics.mean(both.astype(float) - neither)
        shares = (cell["clean"].mean(), cell["counterfactual"].mean(), both.mean(), neither.mean())
        rows.append((direction, len(cell), *shares, order.value, order.low, order.high))
    columns = ["direction", "n", "clean", "counterfactual", "both", "neither", "both_minus_neither", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def exchanges(study: Study) -> dict[str, Interchange]:
    """Objects and strips exchanged as in PROTOCOL.md 4: order codes move, entities stay; and `places`, their mirror
    image: the two objects' tokens change places *within* the clean run, entities move, codes stay with the tokens."""
    return regions(study, ["object", "strip"]) | {"places": regions(study, ["object"], own=True)["object"]}


def interchange_identities(table: pd.DataFrame) -> dict[str, float]:
    """What must hold at slot 0 of a sweep of `exchanges` over an ablated study, as largest differences."""
    edits = {"object": "clean", "places": "counterfactual"}
    return {
        f"{edit} at slot 0 against the {run} run": largest_difference(
            table[table["edit"].isin(["none", edit])], run, [0]
        )
        for edit, run in edits.items()
    }


# --- attention knock-out ----------------------------------------------------------------------------------------


def reading_sets(study: Study, seed: int = 0) -> dict[str, Int[np.ndarray, "pair token"]]:
    """Image tokens that the last token may read: those of target, opposite and middle object, the background, all, and,
    as a control, as many random background tokens as an object has."""
    centred(study.pairs)
    grid, out = study.vlm.grid, []
    rng = np.random.default_rng(seed)
    for pair in study.pairs:
        names = [entity.name for entity in pair.clean.entities]
        where = [object_tokens(grid, pair.orientation, names.index(word)) for word in pair.candidates]
        random = random_background(grid, pair.orientation, len(where[0]), rng)
        out.append((*where, background(grid, pair.orientation), np.arange(grid.side**2), random))
    names = ("target", "opposite", "middle", "background", "all", "random")
    return {name: np.stack(column) for name, column in zip(names, zip(*out, strict=True), strict=True)}


def spans(layers: int) -> list[range]:
    """Ranges of layers to cut: each alone, and from each one to the end."""
    return [range(k, k + 1) for k in range(layers)] + [range(k, layers) for k in range(layers - 1)]


def knocked_out(table: pd.DataFrame, layers: int, role: str = "clean") -> pd.DataFrame:
    """A knock-out sweep as change of a probability per pair: pair, edit, slot, span (alone, onward), change.

    The last layer alone belongs to both spans.
    """
    table = table[table["role"] == role]
    base = table[table["slot"] == BASELINE].set_index("pair")["probability"]
    cut = table[table["slot"] != BASELINE]
    cut = cut.assign(change=cut["probability"] - cut["pair"].map(base))
    parts = [cut[cut["stop"] == cut["slot"] + 1].assign(span="alone"), cut[cut["stop"] == layers].assign(span="onward")]
    return pd.concat(parts, ignore_index=True)
