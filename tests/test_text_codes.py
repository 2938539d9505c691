"""Codes on tokens of the question: the pairs show what they should, a patch with the run's own states does nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny

from lib.analysis import studies, text_codes
from lib.analysis.components import given_sweep
from lib.engine.prompts import Prompt
from lib.errors import UserError
from lib.patching.sites import RESIDUAL
from lib.stimuli.grids import GRIDS
from lib.stimuli.questions import DIRECTIONS

EXACT = 1e-5
GRID = GRIDS["reference"]


def corner(item, name):
    """Where an entity's box begins, along the line."""
    box = next(p.box for p in item.scene.placements if p.entity.name == name)
    return box[0] if item.orientation == "horizontal" else box[1]


def rank(item, name):
    """The place of an entity in its line, counted from the side that is asked for."""
    places = [entity.name for entity in item.entities]
    return places.index(name) if item.direction in ("left", "above") else 2 - places.index(name)


@pytest.mark.parametrize(
    ("kind", "line", "canvas"), [("both", True, True), ("order", True, False), ("canvas", False, True)]
)
def test_pairs_differ_in_the_place_that_their_kind_names(kind, line, canvas):
    for pair in text_codes.place_pairs(GRID, 3, kind=kind):
        answer, order, other = pair.candidates
        reference, shown = pair.clean.candidates[-1], (pair.clean, pair.counterfactual)
        assert pair.clean.question == pair.counterfactual.question and reference in pair.clean.question
        assert (pair.clean.answer, pair.counterfactual.answer) == (answer, other)
        for item in shown:  # the answer stands next to the reference, on the side asked for
            assert rank(item, item.answer) == rank(item, reference) - 1
            assert item.entities[item.target].name == item.answer
            assert item.entities[item.reference].name == reference
        assert (rank(shown[0], reference) != rank(shown[1], reference)) == line
        assert (corner(shown[0], reference) != corner(shown[1], reference)) == canvas
        target = order if canvas else answer  # who stands in the clean picture where the new answer stands in its own
        assert corner(shown[0], target) == corner(shown[1], other)
        assert len({*pair.candidates, reference}) == 4


@pytest.mark.parametrize("kind", text_codes.KINDS)
def test_the_null_leaves_the_reference_where_it_is(kind):
    pairs = text_codes.place_pairs(GRID, 2, kind=kind)
    for pair in text_codes.same_place(pairs, GRID, kind):
        reference = pair.clean.candidates[-1]
        assert corner(pair.clean, reference) == corner(pair.counterfactual, reference)
        assert {e.name for e in pair.clean.entities} & {e.name for e in pair.counterfactual.entities} == {reference}
        assert pair.candidates[2] == pair.counterfactual.answer


def test_a_grid_without_room_for_a_shift_is_refused():
    with pytest.raises(UserError, match="no room"):
        text_codes.place_pairs(replace(GRID, side=6), 1, kind="order")


@pytest.fixture(scope="module")
def directions(model):
    return studies.study(model, text_codes.direction_pairs(model.grid, 1))


@pytest.mark.parametrize("family", ["reference", "qwen2-vl", "gemma-3"])
def test_tokens_are_the_words_that_they_are_named_after(family):
    vlm = tiny(family)
    study = studies.study(vlm, text_codes.direction_pairs(vlm.grid, 1))
    places, prompt = text_codes.positions(study), study.clean.prompt
    assert isinstance(prompt, Prompt)
    for row, pair in enumerate(study.pairs):
        read = {
            name: vlm.tokenizer.decode(prompt.ids[row, tokens[row]]).strip().lower() for name, tokens in places.items()
        }
        assert (read["direction"], read["reference"]) == (pair.direction, pair.clean.candidates[-1])
        assert read["noun"] == "square" and read["all words"].startswith(pair.direction)


def test_the_runs_own_states_change_nothing_and_the_other_runs_states_are_its_patch(directions):
    """Of single tokens and of all words at once, written as given states and read by the sweep."""
    edits = text_codes._edits(text_codes.positions(directions))
    own, columns = text_codes._states(directions, directions.clean)
    other, _ = text_codes._states(directions, directions.counterfactual)
    tables = [
        given_sweep(directions, edits, [RESIDUAL], {(RESIDUAL.name, slot): x for slot, x in enumerate(states)}, columns)
        for states in (own, other)
    ]
    keys = ["edit", "slot", "pair", "role"]
    unpatched = tables[0][tables[0]["run"] == "clean"].set_index(["pair", "role"])["logit"]
    rows = tables[0][tables[0]["run"] == "patched"]
    assert (
        np.abs(rows["logit"].to_numpy() - unpatched.loc[list(zip(rows["pair"], rows["role"], strict=True))]).max()
        < EXACT
    )
    swept = text_codes._sweep(directions, tuple(text_codes.WORDS))
    both = [t[t["run"] == "patched"].sort_values(keys)["logit"].to_numpy() for t in (tables[1], swept)]
    assert np.abs(both[0] - both[1]).max() < EXACT
    assert np.abs(both[0] - rows.sort_values(keys)["logit"].to_numpy()).max() > EXACT


def test_a_planted_change_is_readable_and_random_ones_are_not():
    asked, rng = np.repeat(["left", "right"], 6), torch.Generator().manual_seed(0)
    noise = torch.randn(1, 12, 1, 64, generator=rng).double()
    planted = noise + 2 * torch.randn(64, generator=rng).double()
    ones = np.ones(12)
    assert text_codes._agrees(planted, asked, ones).mean() == 1
    assert text_codes._agrees(noise, asked, ones).mean() < 0.9
    assert (text_codes._agrees(torch.zeros_like(noise), asked, ones) == 0.5).all()


def test_a_direction_is_the_mean_change_of_its_pairs_and_a_null_is_as_long():
    of, asked = np.array(["left", "left", "right", "right"]), np.array(["right", "left", "right"])
    change = torch.arange(4.0)[None, :, None, None].expand(1, 4, 1, 3)
    step = text_codes._step(change, of, asked)
    assert step[0, :, 0, 0].tolist() == [2.5, 0.5, 2.5]
    null = text_codes._stretched(text_codes._halves(change, of, asked, 0), step, 0)
    assert torch.allclose(null.norm(dim=-1), step.norm(dim=-1))


@pytest.mark.parametrize("kept", [("left", "right"), ("above", "below")])
def test_directions_that_only_one_half_of_the_pairs_keeps_are_left_out(reference, monkeypatch, kept):
    """The words of "left of the" are one token longer than those of "above the": states of both do not fit together."""
    drawn = iter([DIRECTIONS, kept])
    whole = text_codes.direction_pairs

    def some(grid, n, seed=0):
        directions = next(drawn)
        return [pair for pair in whole(grid, n, seed) if pair.direction in directions]

    monkeypatch.setattr(text_codes, "direction_pairs", some)
    monkeypatch.setattr(text_codes, "FEWEST", 4)
    found = text_codes.direction(reference, n=2, draws=1)
    assert set(found["axis"]) == {"all", "horizontal" if "left" in kept else "vertical"}


def test_a_model_that_answers_nothing_gets_no_rows_and_a_sentence(model):
    found = text_codes.table(model, n=1, draws=1)
    assert found.empty and "nothing is shown" in text_codes.headline(found)[0]


def test_the_last_token_of_the_reference_model_carries_what_the_table_says(reference):
    found = text_codes.place(reference, "order", n=3, draws=1)
    assert set(found["source"]) == {"picture", "empty canvas"} and set(found["axis"]) == {
        "horizontal",
        "vertical",
        "all",
    }
    first = found[found["slot"] == 0]
    assert first["effect"].abs().max() < EXACT  # the same words in both questions
    assert (first["readable"] == 0.5).all() and not first["carries"].any()
