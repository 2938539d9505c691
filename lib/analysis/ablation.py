"""The ordering ablation, whole and in parts, and what is left after it (PROTOCOL.md 5 and 6; floor 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from lib.analysis import statistics
from lib.analysis.effects import curves, moved
from lib.analysis.identities import largest_difference
from lib.analysis.interchange import regions
from lib.analysis.line_images import Lines
from lib.analysis.studies import Study, centred
from lib.engine.vlm import VLM
from lib.patching.interventions import (
    Interchange,
    Run,
    ordering_ablation,
)
from lib.stimuli import token_sets
from lib.stimuli.pairs import AblatedPair
from lib.stimuli.scenes import entities
from lib.stimuli.token_sets import object_tokens

# --- the ablation ---------------------------------------------------------------------------------------------


def ablated(vlm: VLM, pairs: Sequence[AblatedPair], progress: bool = False) -> Study:
    """The study of the same pairs with order removed from every picture's image tokens (PROTOCOL.md 5).

    Pairs may mix directions; each picture is ablated along its own axis. They must stand in the middle (`centred`).
    """
    centred(pairs)
    plain = [scene for pair in pairs for scene in (*pair.alone, pair.empty)]
    images, index = vlm.distinct([scene.image(vlm.grid.canvas) for scene in plain], progress)
    index = index.reshape(-1, 4)
    both, known = [], {}
    places = np.zeros((2, len(pairs)), dtype=int)
    for k, (pair, (*alone, empty)) in enumerate(zip(pairs, index, strict=True)):
        for run, entities in enumerate((alone, alone[::-1])):
            key = (pair.orientation, *entities, empty)
            if key not in known:
                known[key] = len(both)
                sets = [object_tokens(vlm.grid, pair.orientation, slot) for slot in range(3)]
                both.append(ordering_ablation(images, images[empty], np.array([entities]), sets, sets[1])[0])
            places[run, k] = known[key]
    stacked = torch.stack(both)
    questions = [pair.clean.question for pair in pairs]
    clean, other = (Run.of(vlm, questions, stacked, row) for row in places)
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


def without_order(vlm: VLM, pictures: Lines) -> Lines:
    """The same lines after the ordering ablation of PROTOCOL.md 5."""
    single = [(None, entity, None) for entity in entities(pictures.setting, vlm.grid)] + [(None, None, None)]
    alone = Lines.of(vlm, pictures.setting, single, pictures.orientation).images
    places = pictures.places
    return replace(pictures, images=ordering_ablation(alone[:-1], alone[-1], pictures.entities, places, places[1]))


# --- parts of it (necessity) ----------------------------------------------------------------------------------


def partly_ablated(plain: Study, ablated: Study, part: str, seed: int = 0) -> Study:
    """`plain` with the tokens of a part taken from `ablated`, the study of the same pairs without order.

    So background tokens become the empty canvas's and object tokens those of the entity alone in the middle
    (`interventions.ordering_ablation`). "none" is `plain`, "both" is `ablated`.
    """
    centred(plain.pairs)
    rng, built = np.random.default_rng(seed), []
    sets = [token_sets.part_tokens(plain.vlm.grid, pair.orientation, part, rng) for pair in plain.pairs]
    for before, after in ((plain.clean, ablated.clean), (plain.counterfactual, ablated.counterfactual)):
        for k, which in enumerate(sets):
            mixed = before.images[int(before.index[k])].clone()
            mixed[torch.as_tensor(which)] = after.images[int(after.index[k])][torch.as_tensor(which)]
            built.append(mixed)
    images, count = torch.stack(built), len(plain)
    clean = replace(plain.clean, images=images, index=np.arange(count))
    other = replace(plain.counterfactual, images=images, index=np.arange(count, 2 * count))
    return replace(plain, clean=clean, counterfactual=other)


# --- answers of unpatched runs --------------------------------------------------------------------------------


def answers(study: Study) -> pd.DataFrame:
    """Both runs of every pair as questions of their own: labels, pair, run, target, opposite, reference, right.

    target, opposite, reference: probabilities; right: the most probable token of the vocabulary is the target. The two
    runs ask the same question about mirrored pictures, so that a liking for some words cancels within a pair: without
    any order in the picture the mean of target - opposite is 0 exactly.
    """
    wide = study.baselines.pivot(index=["pair", "run"], columns="role", values="probability").reset_index()
    mirrored = (wide["run"] == "counterfactual").to_numpy()
    target = np.where(mirrored, wide["counterfactual"], wide["clean"])
    opposite = np.where(mirrored, wide["clean"], wide["counterfactual"])
    right = study.right.stack().rename_axis(["pair", "run"]).rename("right").reset_index()
    out = wide[["pair", "run"]].assign(target=target, opposite=opposite, reference=wide["reference"])
    return out.merge(right, on=["pair", "run"]).join(study.labels, on="pair").assign(order=target - opposite)


def order_kept(intact: pd.DataFrame, without: pd.DataFrame, seed: int = 0) -> dict[str, statistics.Estimate]:
    """What an ablation leaves of P(target) - P(opposite), from `answers` of the same pairs before and after.

    order_lost: the share of it that is gone; order_left: what is left of it.
    """
    before, after = (table.groupby("pair")["order"].mean() for table in (intact, without))
    lost = statistics.ratio(before - after, before, seed=seed)
    return {"order_lost": lost, "order_left": statistics.mean(after, seed=seed)}


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


# --- object interchange under the ablation (PROTOCOL.md 6) ----------------------------------------------------


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
