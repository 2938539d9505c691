"""The ordering ablation, whole and in parts, and what is left of order after it (PROTOCOL.md 5 and 6; floor 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from lib.analysis import statistics
from lib.analysis.effects import couples, curves, moved
from lib.analysis.identities import largest_difference
from lib.analysis.interchange import regions
from lib.analysis.line_images import LineImages
from lib.analysis.studies import Study, require_centred
from lib.engine.vlm import VLM
from lib.patching.edits import Interchange, ordering_ablation
from lib.patching.runs import Run
from lib.stimuli import scenes
from lib.stimuli.pairs import AblatedPair
from lib.stimuli.token_sets import object_tokens, part_tokens

# --- the ablation ---------------------------------------------------------------------------------------------


def ablated_study(vlm: VLM, pairs: Sequence[AblatedPair], progress: bool = False) -> Study:
    """The study of the same pairs with order removed from every picture's image tokens (PROTOCOL.md 5).

    Pairs may mix directions; each picture is ablated along its own axis. The lines must be centred.
    """
    require_centred(pairs)
    plain = [scene for pair in pairs for scene in (*pair.alone, pair.empty)]
    images, index = vlm.distinct([scene.image(vlm.grid.canvas) for scene in plain], progress)
    index = index.reshape(-1, 4)
    ablated, known = [], {}
    row_of = np.zeros((2, len(pairs)), dtype=int)
    for k, (pair, (*alone, empty)) in enumerate(zip(pairs, index, strict=True)):
        for run, entities in enumerate((alone, alone[::-1])):
            key = (pair.orientation, *entities, empty)
            if key not in known:
                known[key] = len(ablated)
                sets = [object_tokens(vlm.grid, pair.orientation, place) for place in range(3)]
                ablated.append(ordering_ablation(images, images[empty], np.array([entities]), sets, sets[1])[0])
            row_of[run, k] = known[key]
    stacked = torch.stack(ablated)
    questions = [pair.clean.question for pair in pairs]
    clean, other = (Run.of(vlm, questions, stacked, row) for row in row_of)
    return Study(vlm, tuple(pairs), clean, other, vlm.candidates([pair.candidates for pair in pairs]))


def ablated_lines(vlm: VLM, lines: LineImages) -> LineImages:
    """The same lines after the ordering ablation of PROTOCOL.md 5."""
    single = [(None, entity, None) for entity in scenes.entities(lines.setting, vlm.grid)] + [(None, None, None)]
    alone = LineImages.of(vlm, lines.setting, single, lines.orientation).images
    sets = lines.place_tokens
    return replace(lines, images=ordering_ablation(alone[:-1], alone[-1], lines.entities, sets, sets[1]))


def partial_ablation(plain: Study, ablated: Study, part: str, seed: int = 0) -> Study:
    """`plain` with the tokens of one part (`token_sets.PARTS`) taken from `ablated`, the ablated study of its pairs.

    Background tokens thus become those of the empty canvas, and object tokens those of the same entity alone in the
    middle. "none" is `plain`, "both" is `ablated`.
    """
    require_centred(plain.pairs)
    rng, built = np.random.default_rng(seed), []
    sets = [part_tokens(plain.vlm.grid, pair.orientation, part, rng) for pair in plain.pairs]
    for before, after in ((plain.clean, ablated.clean), (plain.counterfactual, ablated.counterfactual)):
        for k, which in enumerate(sets):
            mixed = before.images[int(before.index[k])].clone()
            mixed[torch.as_tensor(which)] = after.images[int(after.index[k])][torch.as_tensor(which)]
            built.append(mixed)
    images, count = torch.stack(built), len(plain)
    clean = replace(plain.clean, images=images, index=np.arange(count))
    other = replace(plain.counterfactual, images=images, index=np.arange(count, 2 * count))
    return replace(plain, clean=clean, counterfactual=other)


# --- what is left of order ------------------------------------------------------------------------------------


def answers(study: Study) -> pd.DataFrame:
    """Both runs of every pair, each as a question of its own, without any edit.

    Columns pair, run, target, opposite, reference (probabilities), correct (the most probable token of the vocabulary
    is the target), the pair's labels, and order = target - opposite. The two runs ask the same question about mirrored
    pictures, so that a preference for some words cancels within a pair: if the model has no order at all, the mean of
    target - opposite is exactly 0.
    """
    wide = study.baselines.pivot(index=["pair", "run"], columns="role", values="probability").reset_index()
    mirrored = (wide["run"] == "counterfactual").to_numpy()
    target = np.where(mirrored, wide["counterfactual"], wide["clean"])
    opposite = np.where(mirrored, wide["clean"], wide["counterfactual"])
    correct = study.correct.stack().rename_axis(["pair", "run"]).rename("correct").reset_index()
    out = wide[["pair", "run"]].assign(target=target, opposite=opposite, reference=wide["reference"])
    return out.merge(correct, on=["pair", "run"]).join(study.labels, on="pair").assign(order=target - opposite)


def agreement_above_chance(study: Study) -> pd.DataFrame:
    """How often the clean run, the counterfactual run, both or neither are answered correctly, per direction.

    Columns direction, n, clean, counterfactual, both, neither, both_minus_neither, low, high. A model that guesses
    between the two entities has both = neither = 1/4; one that always prefers one of them has 0 and 0: in either case
    the difference is 0. A fixed preference for one end of the line gives 1 in one direction and -1 in the opposite
    one, 0 over all. A difference above 0 over all directions is evidence of order. Answers that name neither of the
    two entities push it below 0.
    """
    correct = study.correct.join(study.labels[["direction", "couple"]])
    rows = []
    for direction, cell in [*correct.groupby("direction", sort=False), ("all", correct)]:
        both = (cell["clean"] & cell["counterfactual"]).to_numpy()
        neither = (~cell["clean"] & ~cell["counterfactual"]).to_numpy()
        order = statistics.mean(both.astype(float) - neither, cell["couple"])
        shares = (cell["clean"].mean(), cell["counterfactual"].mean(), both.mean(), neither.mean())
        rows.append((direction, len(cell), *shares, order.value, order.low, order.high))
    columns = ["direction", "n", "clean", "counterfactual", "both", "neither", "both_minus_neither", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


# --- object interchange under the ablation (PROTOCOL.md 6) ----------------------------------------------------


def backup_edits(study: Study) -> dict[str, Interchange]:
    """The edits of PROTOCOL.md 6: `object` and `strip` move order codes, `places` moves entities.

    object, strip: the interchange of PROTOCOL.md 4, the entity stays. places: the tokens of the two objects change
    places *within* the clean run, so that each entity moves and what has been written on its tokens moves with it.
    """
    return regions(study, ["object", "strip"]) | {"places": regions(study, ["object"], own=True)["object"]}


def interchange_identities(table: pd.DataFrame) -> dict[str, float]:
    """What must hold at slot 0 of a sweep of `backup_edits` over an ablated study, as largest differences."""
    edits = {"object": "clean", "places": "counterfactual"}
    return {
        f"{edit} at slot 0 against the {run} run": largest_difference(
            table[table["edit"].isin(["none", edit])], run, [0]
        )
        for edit, run in edits.items()
    }


def backup(table: pd.DataFrame, seed: int = 0) -> dict[str, statistics.Estimate]:
    """Claim C6 from a sweep of `backup_edits` over an ablated study; every resample of pairs finds its own maximum.

    backup_beyond_floor: largest effect over slots of crossing the objects, minus its effect at slot 0 (never below 0,
    because slot 0 is among the slots). backup_on_objects: the largest excess over slots of that effect above the effect
    of moving the objects within the clean run. Effects as in `effects.summarise`. n counts pairs, because
    the rule asks for a number of them; a table without pairs gives n = 0.
    """
    if table.empty:
        nothing = statistics.Estimate(np.nan, np.nan, np.nan, 0)
        return {"backup_beyond_floor": nothing, "backup_on_objects": nothing}
    cells, units = moved(table), couples(table)
    crossed, within, between = (
        curves(cells, value, edit=edit)
        for value, edit in (("moved", "object"), ("moved", "places"), ("between", "object"))
    )

    def effect(changes, between):
        below = between[:, 0].mean()  # the same at every slot
        return changes.mean(0) / below if abs(below) > statistics.ROUNDING else np.full(changes.shape[1], np.nan)

    def beyond_start(crossed, between):
        return (effect(crossed, between) - effect(crossed, between)[0]).max()

    def beyond_moving(crossed, within, between):
        return (effect(crossed, between) - effect(within, between)).max()

    found = {
        "backup_beyond_floor": statistics.bootstrap(beyond_start, crossed, between, units=units, seed=seed),
        "backup_on_objects": statistics.bootstrap(beyond_moving, crossed, within, between, units=units, seed=seed),
    }
    return {name: replace(each, n=len(crossed)) for name, each in found.items()}
