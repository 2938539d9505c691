"""Schematics show what the interventions do: the same tokens, words and numbers."""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch

from lib.analysis import interchange
from lib.artifact import schematics
from lib.artifact.schematics import LAST, Arrow, Shown
from lib.patching.edits import amplify
from lib.stimuli.grids import GRIDS
from lib.stimuli.pairs import last_token_pairs, mirrored_pairs
from lib.stimuli.token_sets import background

mpl.use("Agg")
GRID = GRIDS["reference"]
PAIR = mirrored_pairs("squares", GRID, n=1)[0]


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


def tinted(ax) -> int:
    """How many image tokens of a panel are tinted."""
    return sum(int((image.get_array()[..., 3] > 0).sum()) for image in ax.images[1:])


def test_the_ladder_tints_what_each_step_replaces():
    rest = len(background(GRID, PAIR.orientation))
    figure = schematics.ladder_steps(PAIR, GRID)
    assert [tinted(ax) for ax in figure.axes] == [0, rest, GRID.side**2, GRID.side**2]


def test_partial_ablations_tint_what_they_replace():
    rest, objects = len(background(GRID, PAIR.orientation)), 3 * GRID.entity**2
    figure = schematics.partial_ablation(PAIR, GRID)
    assert {ax.get_title(): tinted(ax) for ax in figure.axes} == {
        "none": 0, "random": objects, "background": rest, "object": objects, "both": GRID.side**2,
    }  # fmt: skip


@pytest.mark.parametrize("pair", [PAIR, mirrored_pairs("squares", GRID, n=1)[-1]], ids=lambda pair: pair.orientation)
def test_an_interchange_names_the_side_of_the_mirror_picture(pair):
    study = SimpleNamespace(pairs=[pair], vlm=SimpleNamespace(grid=GRID))
    edits = {"objects": interchange.partial_strips(study, 0), "strips": interchange.partial_strips(study, 8)}
    figure = schematics.interchanged(pair, edits, GRID)
    own = 2 * GRID.entity**2
    assert [tinted(ax) for ax in figure.axes] == [0, own, own + 16]
    sides = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sides == ["its own", *schematics.SIDES[pair.orientation]]
    first, second = (image.get_array()[..., 3] > 0 for image in figure.axes[1].images[1:])
    axis = int(pair.orientation == "horizontal")
    assert np.nonzero(first)[axis].min() > np.nonzero(second)[axis].max(), "each side takes the other one's"


def test_only_what_is_cut_is_crossed_out():
    for kind in schematics.KINDS:
        figure = schematics.last_token_reads(PAIR.clean.scene, "left of the red square?", GRID, 5, kind)
        crosses = [line for line in figure.axes[1].lines if line.get_marker() == "x"]
        assert [line.get_xydata().tolist() for line in crosses] == ([[[3.0, 2.5]]] if kind == "cut" else [])


def test_a_patch_of_a_component_lies_between_two_slots(monkeypatch):
    drawn = []
    monkeypatch.setattr(schematics, "runs", lambda rows, arrows, slots: drawn.extend(arrows))
    schematics.patched(PAIR, GRID, 7, between=True)
    assert [(arrow.source[2], arrow.target[2]) for arrow in drawn] == [(3.5, 3.5)]


def test_a_patch_joins_the_same_words_of_both_questions():
    for pair in last_token_pairs("squares", GRID, n=1):
        rows = [Shown.of("", item.scene, item.question, GRID) for item in (pair.clean, pair.counterfactual)]
        for row, item in zip(rows, (pair.clean, pair.counterfactual), strict=True):
            assert row.tokens[schematics._place(row, item, "last")] == LAST
            assert row.tokens[schematics._place(row, item, "reference")] == item.candidates[-1]


def test_an_object_interchange_crosses_the_sides(monkeypatch):
    drawn = []
    monkeypatch.setattr(schematics, "runs", lambda rows, arrows, slots: drawn.append((rows, arrows)))
    schematics.object_interchange(PAIR, GRID, 7)
    rows, arrows = drawn[0]
    ends = {(rows[a.source[0]].tokens[a.source[1]], rows[a.target[0]].tokens[a.target[1]]) for a in arrows}
    first, _, last, _ = schematics.things(PAIR.clean)
    assert ends == {(first, first), (last, last)}, "an entity takes its own tokens of the other side"
    assert all(a.source[0] == 1 and a.target[0] == 0 and a.source[2] == a.target[2] for a in arrows)


def test_long_questions_keep_both_ends():
    tokens = Shown.of("", PAIR.clean.scene, " ".join(map(str, range(40))), GRID).tokens
    assert tokens[1] == "0" and tokens[-2:] == ("39", LAST) and "..." in tokens and len(tokens) <= 16


def test_arrows_of_every_kind_are_drawn():
    for kind in schematics.KINDS:
        row = Shown.of("one run", PAIR.clean.scene, PAIR.clean.question, GRID)
        figure = schematics.runs([row], [Arrow((0, 0, 1), (0, 3, 2), kind)], 4)
        assert sum(isinstance(each, mpl.patches.ConnectionPatch) for each in figure.get_children()) == 1


def test_amplified_vectors_are_those_of_the_edit():
    generator = torch.Generator().manual_seed(0)
    vectors, direction = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((2, 8), (8,)))
    along, rest = schematics.in_plane(vectors, direction)
    after, rest_after = schematics.in_plane(amplify(vectors, direction[None], 3.0), direction)
    np.testing.assert_allclose(after, 4 * along, atol=1e-12)
    np.testing.assert_allclose(rest_after, rest, atol=1e-12)
    lines = schematics.amplified(PAIR.clean, GRID, vectors, direction, 3.0).axes[1].lines
    np.testing.assert_allclose(lines[1].get_xdata()[1], after[0], atol=1e-12)
