"""Peaks of planted curves, and the controls of last-token patching on the embedded model."""

import numpy as np
import pandas as pd
import pytest

from lib.analysis import last_token, studies
from lib.patching.sweep import last_token_sweep
from lib.stimuli import pairs

# --- peaks ----------------------------------------------------------------------------------------------------


def sweep(**curves):
    """A last-token sweep whose patched probabilities are given as role=[pair, slot]."""
    rows = [
        (pair, "patched", slot, role, value)
        for role, table in curves.items()
        for pair, curve in enumerate(table)
        for slot, value in enumerate(curve)
    ]
    table = pd.DataFrame(rows, columns=["pair", "run", "slot", "role", "probability"])
    return table.assign(couple=table["pair"])


def test_peaks_are_found_where_they_were_planted():
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.05, size=(40, 6))
    found = last_token.peaks(
        sweep(order=np.array([0, 0.2, 0.8, 0.3, 0, 0]) + noise, attribute=np.array([0, 0, 0.1, 0.3, 0.7, 1]) + noise)
    )
    assert found["order_slot"].value == found["order_slot"].low == found["order_slot"].high == 2
    assert found["attribute_slot"].value == 5 and found["attribute_from"].value == 4
    assert found["order_peak"].value == pytest.approx(0.8, abs=0.02)
    assert found["order_peak"].low < found["order_peak"].value < found["order_peak"].high


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
    assert np.isnan(found["attribute_from"].value)


def test_beyond_words_is_a_difference_of_peaks_averaged_over_axes():
    picture = sweep(order=[[0, 0.9, 0.1]] * 4 + [[0, 0.2, 0.8]] * 4)
    words = sweep(order=[[0, 0.1, 0.5]] * 4 + [[0, 0.8, 0.2]] * 4)
    axes = ["horizontal"] * 4 + ["vertical"] * 4
    both = [each.assign(orientation=[axes[pair] for pair in each["pair"]]) for each in (picture, words)]
    found = last_token.beyond_words(*both)
    assert found.value == pytest.approx((0.9 - 0.5 + 0.8 - 0.8) / 2) and found.n == 8


# --- controls -------------------------------------------------------------------------------------------------


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
