"""Probes of place and relation on planted codes, and the slots of the embedded model."""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
import torch

from lib.analysis import slot_probes
from lib.analysis.probes import ObjectTokens
from lib.stimuli.grids import ORIENTATIONS

# --- planted codes --------------------------------------------------------------------------------------------

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
    """What identifies the places of one set is useless for another: only a split inside sets could read it."""
    assert places(own_set=1.0, content=0.0)["held_out"] < 0.5


def test_relation_is_read_from_a_place_code_and_only_then():
    there = relations(place=1.0, noise=0.3)
    assert there["held_out"] > 0.95 and there["entities"] > 0.95 and there["shuffled"] < 0.7
    own = relations(own_place=1.0, noise=0.3)
    assert own["entities"] < 0.65


def test_without_a_place_code_chance_is_exact():
    """Every order is tested: whatever a probe learned, it is correct in exactly 1/3 and 1/2 of the cases."""
    found = places()
    assert found["entities"] == pytest.approx(1 / 3, abs=1e-9) == found["held_out"]
    found = relations()
    assert found["entities"] == pytest.approx(1 / 2, abs=1e-9) == found["held_out"]
    assert found["control"] > 0.8  # what things are is still there


def test_relations_say_who_is_first():
    objects, _ = planted(place=1.0)
    rows = slot_probes.Relations.of(objects)
    mean = objects.x.reshape(-1, 3, 2, DEPTH).mean(2)
    row = np.flatnonzero((rows.image == 9) & (rows.before == 0))[0]
    where = {objects.entity[(objects.image == 9) & (objects.place == k)][0]: k for k in range(3)}
    a, b = where[rows.first[row]], where[rows.second[row]]
    assert a > b and torch.allclose(rows.x[row], mean[9, a] - mean[9, b])


# --- on the embedded model ------------------------------------------------------------------------------------


def test_lines_are_all_orders_of_their_sets_and_slot_zero_is_the_embedding(reference):
    lines = slot_probes.all_orders(reference, "squares", "vertical", sets=3)
    assert lines.images.shape[:2] == (18, 144) and len({tuple(row) for row in lines.entities}) == 18
    states = slot_probes.object_states(reference, lines, [0, 2])
    first = states[0].x.reshape(18, 3, 4, -1)
    assert torch.allclose(first[7, 2], lines.images[7, torch.as_tensor(lines.place_tokens[2])].cpu(), atol=1e-5)
    assert not torch.allclose(states[0].x, states[2].x, atol=1e-2)


def test_unseen_places_at_slot_zero_are_those_of_the_embeddings(reference):
    lines = slot_probes.all_orders(reference, "squares", "vertical", sets=3)
    by_slot = slot_probes.unseen_places_by_slot(reference, lines)
    assert sorted(by_slot["slot"].unique()) == list(range(len(reference.layers)))
    first = by_slot[by_slot["slot"] == 0].drop(columns="slot").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, slot_probes.unseen_places(reference, lines))
    changed = by_slot.groupby("slot")["correct"].mean()
    assert changed.nunique() > 1, "the backbone changes what is read"


def test_order_readable_counts_sets_entities_and_places(reference):
    lines = [slot_probes.all_orders(reference, "squares", o, 6) for o in ORIENTATIONS]
    parts = [
        slot_probes.place_probes(one.objects, one.sets, ["logistic"]).assign(orientation=one.orientation)
        for one in lines
    ]
    table = pd.concat(parts)
    found = slot_probes.order_readable(reference, table, lines)
    means = table.groupby("test")["correct"].mean()
    assert found["probe_seen_entities"].value == pytest.approx(means["held_out"])
    assert found["probe_unseen_entities"].value == pytest.approx(means["entities"])
    assert found["probe_seen_entities"].n == len(np.unique(lines[0].sets))
    assert found["probe_unseen_entities"].n == table[table["test"] == "entities"]["entity"].nunique()
    assert 0 <= found["probe_unseen_places"].value <= 1
