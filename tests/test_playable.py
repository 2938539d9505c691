"""The page of the nine edits: what it shows is what the model answers, and it needs nothing but itself."""

import json
import re

import numpy as np
import pytest

from lib.analysis import effects, fingerprint, studies
from lib.artifact.site import playable
from lib.stimuli.grids import GRIDS


@pytest.fixture(scope="module")
def found(reference):
    pairs = playable.chosen_pairs(reference.grid)[:2]
    return pairs, playable.answers(reference, pairs)


def test_answers_are_those_of_a_sweep(found, reference):
    pairs, scenes = found
    table = fingerprint.sweep(studies.study(reference, pairs), [1, 5], slots=[0, 2])
    swings = effects.moved(table)
    for k, scene in enumerate(scenes):
        base = scene["before"][1] - scene["before"][0]
        between = scene["other"][1] - scene["other"][0] - base
        for edit in (1, 5):
            own = swings[(swings["pair"] == k) & (swings["edit"] == str(edit))].sort_values("slot")
            shown = [scene["after"][str(edit)][slot] for slot in (0, 2)]
            moved = [(p[1] - p[0] - base) / between for p in shown]
            np.testing.assert_allclose(moved, own["moved"] / own["between"], atol=2e-3)


def test_every_edit_has_every_slot_and_says_its_tokens(found, reference):
    pairs, scenes = found
    for pair, scene in zip(pairs, scenes, strict=True):
        assert set(scene["after"]) == {str(number) for number in fingerprint.EDITS}
        assert {np.shape(each) for each in scene["after"].values()} == {(len(reference.slots), 3)}
        line = fingerprint.LineTokens.of(pair.clean.scene, reference.grid, pair.orientation)
        assert scene["edits"][9]["targets"] == line.edits[9].targets.tolist()
        assert scene["edits"][9]["own"] and not scene["edits"][5]["own"]
        assert scene["words"] == pair.candidates and scene["correct"]
        last = np.array([each[-1] for each in scene["after"].values()])
        np.testing.assert_allclose(last, np.tile(scene["before"], (9, 1)), atol=1e-3)  # image tokens decide no more


def test_regions_that_trade_are_two_halves():
    """The page takes the first half of the tokens for region x and the second for y, unless all stay in place."""
    grid = GRIDS["reference"]
    for pair in playable.chosen_pairs(grid):
        line = fingerprint.LineTokens.of(pair.clean.scene, grid, pair.orientation)
        for edit in line.edits.values():
            half = len(edit.targets) // 2
            trade = np.array_equal(edit.targets[:half], edit.sources[half:])
            assert trade or np.array_equal(edit.targets, edit.sources)


def test_the_page_needs_nothing_but_itself(tmp_path, monkeypatch, found):
    _, scenes = found
    evil = scenes[0] | {"label": "</script><b>"}
    monkeypatch.setattr(playable, "chosen_pairs", lambda grid: [])
    monkeypatch.setattr(playable, "answers", lambda model, pairs: [evil])
    page = playable.write(tmp_path / "edits.html", ["reference"]).read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)[1])
    assert data["models"][0]["name"] == "reference" and data["models"][0]["scenes"][0]["label"] == "</script><b>"
    assert data["edits"]["9"]["rival"] == "S" and data["edits"]["5"]["title"] == fingerprint.EDITS[5]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page) and "fetch(" not in page
    assert page.count("<label") >= 2 and "aria-live" in page and "<noscript>" in page


def test_no_model_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr(playable.checkpoints, "shipped", dict)
    assert playable.write(tmp_path / "edits.html") is None and not (tmp_path / "edits.html").exists()
