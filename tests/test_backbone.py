"""Order in the backbone, on planted curves and vectors whose answer is known, and on the embedded model."""

from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib.analysis import ablation, identities, knockout, last_token, slot_probes, studies
from lib.analysis.probes import ObjectTokens
from lib.engine import vlm
from lib.errors import UserError
from lib.patching.sweep import knockout_sweep, last_token_sweep, token_sweep
from lib.stimuli import pairs

ROLES = ("clean", "order", "attribute")


def sweep(**curves):
    """A last-token sweep whose patched probabilities are given as role=[pair, slot]."""
    rows = [
        (pair, "patched", slot, role, value)
        for role, table in curves.items()
        for pair, curve in enumerate(table)
        for slot, value in enumerate(curve)
    ]
    return pd.DataFrame(rows, columns=["pair", "run", "slot", "role", "probability"])


# --- peaks ----------------------------------------------------------------------------------------------------


def test_peaks_are_found_where_they_were_planted():
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.05, size=(40, 6))
    found = last_token.peaks(
        sweep(order=np.array([0, 0.2, 0.8, 0.3, 0, 0]) + noise, attribute=np.array([0, 0, 0.1, 0.3, 0.7, 1]) + noise)
    )
    assert found["order_slot"].value == found["order_slot"].low == found["order_slot"].high == 2
    assert found["attribute_slot"].value == 5 and found["attribute_from"].value == 4
    assert found["order_before_attribute"].value == 2 and found["order_before_attribute"].n == 40
    assert found["order_peak"].value == pytest.approx(0.8, abs=0.02)
    assert found["order_peak"].low < found["order_peak"].value < found["order_peak"].high


def test_attribute_first_counts_below_zero():
    order, attribute = [[0, 0, 0, 0.9]] * 5, [[0, 1, 1, 1]] * 5
    assert last_token.peaks(sweep(order=order, attribute=attribute))["order_before_attribute"].value == -2


def test_every_resample_looks_for_its_own_maximum():
    """Half of the pairs peak at slot 1, half at slot 3: the larger half of a resample is never below 1/2."""
    order = np.array([[0, 1, 0, 0]] * 10 + [[0, 0, 0, 1]] * 10, dtype=float)
    found = last_token.peaks(sweep(order=order, attribute=order))
    assert found["order_peak"].value == 0.5 == found["order_peak"].low  # a fixed slot would go below
    assert (found["order_slot"].low, found["order_slot"].high) == (1, 3)


@pytest.mark.parametrize(
    ("curve", "slot"), [([0, 1, 0, 1, 1], 3), ([1, 1], 0), ([0, 0.5], np.nan), ([0.6, 0.5, 0.51], 2)]
)
def test_stays_above(curve, slot):
    np.testing.assert_equal(last_token.stays_above(np.array(curve, dtype=float)), slot)


def test_an_attribute_that_never_comes_has_no_slot():
    found = last_token.peaks(sweep(order=[[0, 1.0]] * 4, attribute=[[0, 0.2]] * 4))
    assert np.isnan(found["attribute_from"].value) and np.isnan(found["order_before_attribute"].low)


def token_table(effects, clean=-0.8, counterfactual=0.8):
    """A token sweep in which a pair's swing after the edit is clean + effect * (counterfactual - clean)."""
    rows = []
    for pair, curve in enumerate(effects):
        runs = [("clean", -1, "none", clean), ("counterfactual", -1, "none", counterfactual)]
        runs += [("patched", k, "object", clean + e * (counterfactual - clean)) for k, e in enumerate(curve)]
        for run, slot, edit, swing in runs:
            rows += [
                (pair, run, slot, edit, role, 0.5 + sign * swing / 2)
                for role, sign in (("clean", -1), ("counterfactual", 1))
            ]
    return pd.DataFrame(rows, columns=["pair", "run", "slot", "edit", "role", "probability"])


def test_backup_peak_is_the_largest_effect_above_slot_zero():
    found = ablation.backup_peak(token_table([[0.1, 0.2, 0.7, 0.1]] * 12))
    assert found.value == pytest.approx(0.6) and found.low == pytest.approx(0.6) and found.n == 12
    split = np.array([[0, 1, 0, 0]] * 10 + [[0, 0, 0, 1]] * 10)
    assert ablation.backup_peak(token_table(split)).low == pytest.approx(0.5)  # the maximum of each resample
    assert ablation.backup_peak(token_table([[0, 0, 0]] * 8)).high == pytest.approx(0)


def test_backup_peak_is_not_a_number_when_the_runs_do_not_differ():
    assert np.isnan(ablation.backup_peak(token_table([[0, 0.5]] * 6, clean=0.3, counterfactual=0.3)).low)


# --- probes ---------------------------------------------------------------------------------------------------

KINDS, DEPTH = 6, 40
SETS = list(combinations(range(KINDS), 3))


def planted(place=0.0, content=1.0, own_place=0.0, own_set=0.0, noise=0.0):
    """All orders of all sets, two tokens an object; own_place, own_set: a place code of each entity, of each set."""
    rng = np.random.default_rng(5)
    entities = np.array([order for members in SETS for order in permutations(members)])
    sets = np.repeat(np.arange(len(SETS)), 6)
    codes = {name: rng.normal(size=(size, DEPTH)) for name, size in {"place": 3, "kind": KINDS}.items()}
    by_kind, by_set = rng.normal(size=(KINDS, 3, DEPTH)), rng.normal(size=(len(SETS), 3, DEPTH))
    x = place * codes["place"][None] + content * codes["kind"][entities]
    x = x + own_place * by_kind[entities, np.arange(3)] + own_set * by_set[sets[:, None], np.arange(3)]
    tokens = np.repeat(x, 2, axis=1) + noise * rng.normal(size=(len(x), 6, DEPTH))
    return ObjectTokens.of(torch.tensor(tokens, dtype=torch.float32), np.arange(6).reshape(3, 2), entities), sets


def places(**options):
    objects, sets = planted(**options)
    return slot_probes.place_probes(objects, sets, ["logistic"]).groupby("test")["correct"].mean()


def relations(**options):
    objects, sets = planted(**options)
    return slot_probes.relation_probes(slot_probes.Relations.of(objects), sets).groupby("test")["correct"].mean()


def test_a_place_code_is_read_for_entities_never_seen():
    found = places(place=1.0, noise=0.3)
    assert found["held_out"] > 0.95 and found["entities"] > 0.95 and found["control"] > 0.95
    assert found["shuffled"] < 0.65


def test_a_place_code_of_each_entity_is_not_read_for_others():
    found = places(own_place=1.0, noise=0.3)
    assert found["held_out"] > 0.9 and found["entities"] < 0.6


def test_sets_of_three_are_held_out_whole():
    """What tells the places of one set apart says nothing about another: only a split inside sets could read it."""
    assert places(own_set=1.0, content=0.0)["held_out"] < 0.5


def test_relation_is_read_from_a_place_code_and_only_then():
    there = relations(place=1.0, noise=0.3)
    assert there["held_out"] > 0.95 and there["entities"] > 0.95 and there["shuffled"] < 0.7
    own = relations(own_place=1.0, noise=0.3)
    assert own["entities"] < 0.65


def test_without_a_place_code_chance_is_exact():
    """Every order is tested: whatever a probe learned, it is right in exactly 1/3 and 1/2 of the cases."""
    found = places()
    assert found["entities"] == pytest.approx(1 / 3, abs=1e-9) == found["held_out"]
    found = relations()
    assert found["entities"] == pytest.approx(1 / 2, abs=1e-9) == found["held_out"]
    assert found["control"] > 0.8  # what things are is still there


def test_content_independence_is_a_difference_within_objects():
    rows = [
        ("row", 0, 5, "entities", 0.5),
        ("row", 0, 5, "control", 1.0),
        ("row", 1, 6, "entities", 1.0),
        ("row", 1, 6, "control", 1.0),
    ]
    rows += [
        ("column", 0, 5, "entities", 0.9),
        ("column", 0, 5, "control", 0.3),
        ("column", 1, 6, "control", 0.0),
    ]  # 1 has no new one
    table = pd.DataFrame(rows, columns=["orientation", "image", "entity", "test", "correct"])
    found = slot_probes.content_independence(table)
    assert found["probe_held_out"].value == pytest.approx(0.8) and found["probe_held_out"].n == 2  # entities
    assert found["probe_selectivity"].value == pytest.approx((-0.5 + 0 + 0.6) / 3)


def test_relations_say_who_is_first():
    objects, _ = planted(place=1.0)
    rows = slot_probes.Relations.of(objects)
    mean = objects.x.reshape(-1, 3, 2, DEPTH).mean(2)
    row = np.flatnonzero((rows.image == 9) & (rows.before == 0))[0]
    where = {objects.entity[(objects.image == 9) & (objects.place == k)][0]: k for k in range(3)}
    a, b = where[rows.first[row]], where[rows.second[row]]
    assert a > b and torch.allclose(rows.x[row], mean[9, a] - mean[9, b])


# --- on the embedded model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return vlm.load("reference", device="cpu")


def test_lines_are_all_orders_of_their_sets_and_slot_zero_is_the_embedding(reference):
    lines = slot_probes.all_orders(reference, "squares", "vertical", sets=3)
    assert lines.images.shape[:2] == (18, 144) and len({tuple(row) for row in lines.entities}) == 18
    states = slot_probes.object_states(reference, lines, [0, 2])
    first = states[0].x.reshape(18, 3, 4, -1)
    assert torch.allclose(first[7, 2], lines.images[7, torch.as_tensor(lines.place_tokens[2])].cpu(), atol=1e-5)
    assert not torch.allclose(states[0].x, states[2].x, atol=1e-2)


def test_ablated_lines_hold_no_place_at_slot_zero(reference):
    lines = ablation.ablated_lines(reference, slot_probes.all_orders(reference, "squares", "horizontal", sets=8))
    objects = slot_probes.object_states(reference, lines, [0])[0]
    found = slot_probes.place_probes(objects, lines.sets, ["logistic"]).groupby("test")["correct"].mean()
    assert found["entities"] == pytest.approx(1 / 3, abs=1e-9)
    relation = (
        slot_probes.relation_probes(slot_probes.Relations.of(objects), lines.sets).groupby("test")["correct"].mean()
    )
    assert relation["entities"] == pytest.approx(1 / 2, abs=1e-9)


def test_at_slot_zero_of_ablated_runs_codes_cannot_move_and_places_move_everything(reference):
    study = ablation.ablated_study(reference, pairs.ablated_pairs("squares", reference.grid, n=1, seed=0))
    table = token_sweep(
        reference,
        study.clean,
        ablation.backup_edits(study),
        study.ids,
        study.roles,
        study.other,
        slots=[0],
        progress=False,
    )
    found = ablation.interchange_identities(table)
    assert max(found.values()) < 1e-4
    assert identities.largest_difference(table[table["edit"].isin(["none", "places"])], "clean", [0]) > 0.05
    wrong = dict.fromkeys(found, 0.2)
    with pytest.raises(UserError, match="Identity broken: object at slot 0"):
        identities.check(wrong)


def test_the_empty_picture_leaves_the_words_only(reference):
    drawn = pairs.last_token_pairs("squares", reference.grid, n=3, seed=0, directions=("left",))
    study = studies.study(reference, drawn)
    control = last_token.on_empty_picture(study)
    ran = last_token_sweep(
        reference, control.clean, control.counterfactual, control.ids, control.roles, slots=[0, 6], progress=False
    )
    base = ran[(ran["run"] == "counterfactual") & (ran["role"] == "attribute")]["probability"]
    assert base.max() < 0.9  # t3 is in no picture
    plain = last_token_sweep(
        reference, study.clean, study.counterfactual, study.ids, study.roles, slots=[6], progress=False
    )
    same = [t[t["run"] == "clean"]["probability"].to_numpy() for t in (ran, plain)]
    np.testing.assert_allclose(*same, atol=1e-6)


def test_same_question_pairs_move_the_answer_to_the_middle(reference):
    drawn = pairs.last_token_pairs("objects", reference.grid, n=2, seed=0)
    for pair, before in zip(last_token.same_question_pairs(drawn, reference.grid), drawn, strict=True):
        clean, other = pair.clean, pair.counterfactual
        assert clean is before.clean and other.question == clean.question and other.direction == clean.direction
        names = [entity.name for entity in other.entities]
        assert names[2 - clean.target] == clean.entities[1].name  # the reference at the far end
        assert pair.candidates == (clean.answer, clean.entities[1].name, names[1]) and other.answer == names[1]
        drawn_there = sorted(other.scene.placements, key=lambda placed: placed.box[:2])
        assert [placed.entity.name for placed in drawn_there] == names
        assert len({*names, *(entity.name for entity in clean.entities)}) == 5


def test_the_last_token_reads_the_target(reference):
    study = studies.study(reference, pairs.mirrored_pairs("squares", reference.grid, n=2, seed=0)).kept()
    sets = knockout.reading_sets(study)
    assert {name: tokens.shape[1] for name, tokens in sets.items()} == {
        "target": 4, "opposite": 4, "middle": 4, "background": 132, "all": 144, "random": 4,
    }  # fmt: skip
    layers = len(reference.layers)
    table = knockout_sweep(
        reference, study.clean, sets, study.ids, study.roles, knockout.layer_ranges(layers), progress=False
    )
    change = knockout.probability_changes(table, layers)
    onward = change[(change["span"] == "onward") & (change["slot"] == 0)].groupby("edit")["change"].mean()
    assert onward["all"] < -0.3 and abs(onward["random"]) < 0.2
    assert set(change.groupby("span")["slot"].nunique()) == {layers}


# --- agreement above chance -----------------------------------------------------------------------------------


def study_of(clean, counterfactual, directions):
    correct = pd.DataFrame({"clean": clean, "counterfactual": counterfactual}).astype(bool)
    return SimpleNamespace(correct=correct, labels=pd.DataFrame({"direction": directions}))


def test_agreement_above_chance_tells_preferences_from_order():
    ends = ablation.agreement_above_chance(
        study_of([1] * 6 + [0] * 6, [1] * 6 + [0] * 6, ["left"] * 6 + ["right"] * 6)
    )
    assert ends.set_index("direction")["both_minus_neither"].to_dict() == {"left": 1, "right": -1, "all": 0}
    entity = ablation.agreement_above_chance(study_of([1, 0] * 6, [0, 1] * 6, ["left"] * 12)).iloc[-1]
    assert entity["both"] == 0 and entity["both_minus_neither"] == 0
    order = ablation.agreement_above_chance(study_of([1] * 12, [1] * 9 + [0] * 3, ["left"] * 12)).iloc[-1]
    assert order["both_minus_neither"] == 0.75 and order["low"] > 0
