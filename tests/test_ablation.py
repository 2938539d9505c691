"""The ordering ablation: what it replaces, what is left of order, and the backup experiment under it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import BLIND, tiny

from lib.analysis import ablation, identities, slot_probes, studies
from lib.errors import UserError
from lib.patching import sweep
from lib.stimuli import pairs, token_sets
from lib.stimuli.token_sets import object_tokens


@pytest.fixture(scope="module")
def drawn(model):
    return pairs.ablated_pairs("squares", model.grid, n=2)


@pytest.fixture(scope="module")
def plain(model, drawn):
    return studies.study(model, drawn)


@pytest.fixture(scope="module")
def ablated(model, drawn):
    return ablation.ablated_study(model, drawn)


# --- what is replaced -----------------------------------------------------------------------------------------


def test_ablated_pictures_hold_every_entity_as_it_stands_in_the_middle(model):
    drawn = pairs.ablated_pairs("squares", model.grid, n=1)
    out, canvas = ablation.ablated_study(model, drawn), model.grid.canvas
    for k, pair in enumerate(drawn):
        places = [object_tokens(model.grid, pair.orientation, slot) for slot in range(3)]
        alone = model.encode([scene.image(canvas) for scene in pair.alone])[:, places[1]]
        empty = model.encode([pair.empty.image(canvas)])[0]
        for run, order in ((out.clean, (0, 1, 2)), (out.counterfactual, (2, 1, 0))):
            tokens = run.images[run.index[k]]
            for slot, entity in enumerate(order):
                assert torch.allclose(tokens[places[slot]], alone[entity], atol=1e-6)
            rest = np.setdiff1d(np.arange(len(empty)), np.concatenate(places))
            assert torch.allclose(tokens[rest], empty[rest], atol=1e-6)
    assert len(out) == 4 and out.ids.shape[:2] == (4, 3)


def test_ablated_lines_hold_no_place_at_slot_zero(reference):
    lines = ablation.ablated_lines(reference, slot_probes.all_orders(reference, "squares", "horizontal", sets=8))
    objects = slot_probes.object_states(reference, lines, [0])[0]
    found = slot_probes.place_probes(objects, lines.sets, ["logistic"]).groupby("test")["correct"].mean()
    assert found["entities"] == pytest.approx(1 / 3, abs=1e-9)
    relation = (
        slot_probes.relation_probes(slot_probes.Relations.of(objects), lines.sets).groupby("test")["correct"].mean()
    )
    assert relation["entities"] == pytest.approx(1 / 2, abs=1e-9)


@pytest.mark.parametrize("part", token_sets.PARTS)
def test_a_partial_ablation_replaces_its_tokens_and_no_other(plain, ablated, part):
    mixed = ablation.partial_ablation(plain, ablated, part)
    for name in ("clean", "counterfactual"):
        runs = [getattr(study, name) for study in (plain, ablated, mixed)]
        before, after, found = (run.images[torch.as_tensor(run.index)] for run in runs)
        for k, pair in enumerate(plain.pairs):
            objects = {t for slot in range(3) for t in token_sets.object_tokens(plain.vlm.grid, pair.orientation, slot)}
            taken = {t for t in range(before.shape[1]) if not torch.equal(found[k, t], before[k, t])}
            assert all(torch.equal(found[k, t], after[k, t]) for t in taken)
            outside = set(range(before.shape[1])) - objects
            wanted = {"none": set(), "object": objects, "background": outside, "both": objects | outside}
            if part == "random":
                assert taken <= outside and len(taken) <= len(objects)
            else:
                same = {t for t in wanted[part] if torch.equal(after[k, t], before[k, t])}
                assert taken == wanted[part] - same


def test_unknown_parts_are_refused(plain, ablated):
    with pytest.raises(UserError, match="everything"):
        ablation.partial_ablation(plain, ablated, "everything")


def test_answers_of_all_or_nothing_are_those_of_the_two_studies(plain, ablated):
    for part, study in (("none", plain), ("both", ablated)):
        mixed = ablation.partial_ablation(plain, ablated, part)
        found, wanted = ablation.answers(mixed), ablation.answers(study)
        assert np.allclose(found["order"], wanted["order"], atol=1e-5) and found["correct"].equals(wanted["correct"])


# --- what is left of order ------------------------------------------------------------------------------------


def test_a_model_without_any_order_is_correct_half_the_time():
    """A blind backbone on ablated pictures has nothing to go by: both runs of a pair get one answer."""
    blind = tiny("reference", dual=BLIND)
    out = ablation.answers(ablation.ablated_study(blind, pairs.ablated_pairs("squares", blind.grid, n=2)))
    assert len(out) == 16 and set(out["run"]) == {"clean", "counterfactual"}
    assert out.groupby("pair")["order"].mean().abs().max() < 1e-6


def test_roles_follow_the_run(trained):
    out = ablation.answers(trained)
    assert out["correct"].mean() > 0.9 and out["target"].mean() > 0.9
    assert (out.loc[out["correct"], "target"] > out.loc[out["correct"], "opposite"]).all()
    swapped = ablation.answers(replace(trained, clean=trained.counterfactual, counterfactual=trained.clean))
    first, second = (each.set_index(["run", "pair"])["order"] for each in (out, swapped))
    assert np.allclose(first["counterfactual"], -second["clean"], atol=1e-5)  # each run by its own picture


def study_of(clean, counterfactual, directions):
    correct = pd.DataFrame({"clean": clean, "counterfactual": counterfactual}).astype(bool)
    return SimpleNamespace(
        correct=correct, labels=pd.DataFrame({"direction": directions, "couple": range(len(directions))})
    )


def test_agreement_above_chance_separates_preferences_from_order():
    ends = ablation.agreement_above_chance(study_of([1] * 6 + [0] * 6, [1] * 6 + [0] * 6, ["left"] * 6 + ["right"] * 6))
    assert ends.set_index("direction")["both_minus_neither"].to_dict() == {"left": 1, "right": -1, "all": 0}
    entity = ablation.agreement_above_chance(study_of([1, 0] * 6, [0, 1] * 6, ["left"] * 12)).iloc[-1]
    assert entity["both"] == 0 and entity["both_minus_neither"] == 0
    order = ablation.agreement_above_chance(study_of([1] * 12, [1] * 9 + [0] * 3, ["left"] * 12)).iloc[-1]
    assert order["both_minus_neither"] == 0.75 and order["low"] > 0


# --- the backup experiment ------------------------------------------------------------------------------------


def token_table(effects, clean=-0.8, counterfactual=0.8, moved=0.0):
    """A sweep in which a pair's swing after crossing objects is clean + effect * (counterfactual - clean); moved: the
    effect of moving them within the clean run, at every slot."""
    rows = []
    for pair, curve in enumerate(effects):
        runs = [("clean", -1, "none", clean), ("counterfactual", -1, "none", counterfactual)]
        runs += [("patched", k, "object", clean + e * (counterfactual - clean)) for k, e in enumerate(curve)]
        runs += [("patched", k, "places", clean + moved * (counterfactual - clean)) for k, _ in enumerate(curve)]
        for run, slot, edit, swing in runs:
            rows += [
                (pair, run, slot, edit, role, 0.5 + sign * swing / 2)
                for role, sign in (("clean", -1), ("counterfactual", 1))
            ]
    table = pd.DataFrame(rows, columns=["pair", "run", "slot", "edit", "role", "probability"])
    return table.assign(couple=table["pair"])


def test_backup_is_the_largest_effect_above_slot_zero_and_above_moving_the_objects():
    found = ablation.backup(token_table([[0.1, 0.2, 0.7, 0.1]] * 12, moved=0.4))
    floor, beyond = found["backup_beyond_floor"], found["backup_on_objects"]
    assert floor.value == pytest.approx(0.6) and floor.low == pytest.approx(0.6) and floor.n == 12
    assert beyond.value == pytest.approx(0.3)
    split = np.array([[0, 1, 0, 0]] * 10 + [[0, 0, 0, 1]] * 10)
    assert ablation.backup(token_table(split))["backup_beyond_floor"].low == pytest.approx(0.5)  # each resample's own
    assert ablation.backup(token_table([[0, 0, 0]] * 8))["backup_beyond_floor"].high == pytest.approx(0)


def test_backup_is_not_a_number_without_pairs_or_when_the_runs_do_not_differ():
    alike = token_table([[0, 0.5]] * 6, clean=0.3, counterfactual=0.3)
    assert np.isnan(ablation.backup(alike)["backup_beyond_floor"].low)
    assert ablation.backup(alike[:0])["backup_on_objects"].n == 0


def test_at_slot_zero_of_ablated_runs_codes_cannot_move_and_places_move_everything(reference):
    study = ablation.ablated_study(reference, pairs.ablated_pairs("squares", reference.grid, n=1, seed=0))
    table = sweep.token_sweep(
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
    assert identities.largest_difference(table[table["edit"].isin(["none", "places"])], "clean", [0]) > 0.01
    wrong = dict.fromkeys(found, 0.2)
    with pytest.raises(UserError, match="Identity broken: object at slot 0"):
        identities.check(wrong)
