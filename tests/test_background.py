"""Strip scores and predicted places on maps and tokens made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny

from lib.analysis import background
from lib.analysis.line_images import LineImages
from lib.analysis.probes import Probe
from lib.stimuli import grids, scenes, token_sets

GRID = grids.GRIDS["reference"]

AXES = grids.ORIENTATIONS

TOKENS = GRID.side**2


def planted(orientation="horizontal", strength=1.0, noise=0.0, count=30, seed=0):
    """Maps [image, token, label]: place k's label high in strip k, noise per image and token."""
    strip = background.strip_index(GRID, orientation)
    noise = np.random.default_rng(seed).normal(size=(count, TOKENS, 3)) * noise
    return strength * np.eye(3)[strip] + noise


# --- the score ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", AXES)
def test_a_perfect_strip_map_scores_one_on_its_own_axis_and_nothing_on_the_other(orientation):
    other = AXES[1 - AXES.index(orientation)]
    values = planted(orientation)[0]
    assert background.strip_score(values, background.strip_index(GRID, orientation)) == pytest.approx(1)
    assert background.strip_score(values, background.strip_index(GRID, other)) == pytest.approx(0)
    assert background.agreement(values, background.strip_index(GRID, orientation)) == 1


def test_the_score_is_the_share_of_variance_between_strips():
    strip = np.repeat([0, 1, 2], 2)
    values = np.array([[0.0, 2, 2, 4, 4, 6]]).T  # between: 2 * (4 + 0 + 4) = 16, within: 3 * 2 = 6
    assert background.strip_score(values, strip) == pytest.approx(16 / 22)
    assert background.strip_score(np.stack([values, 5 * values + 1]), strip) == pytest.approx([16 / 22, 16 / 22])


def test_a_flat_map_has_no_strips():
    assert background.strip_score(np.full((TOKENS, 3), 1 / 3), background.strip_index(GRID, "horizontal")) == 0


def test_a_reversed_map_has_strips_that_are_not_their_own_place():
    strip = background.strip_index(GRID, "horizontal")
    assert background.strip_score(planted()[0][:, ::-1], strip) == pytest.approx(1)
    assert background.agreement(planted()[0][:, ::-1], strip) == pytest.approx(1 / 3)


def test_permutation_p_is_small_for_strips_and_large_for_noise():
    where = token_sets.background(GRID, "horizontal")
    for maps, low, high in ((planted(noise=1.0), 0, 0.01), (planted(strength=0, noise=1.0), 0.05, 1)):
        row = background.score_rows(maps[:, None], GRID, "horizontal", where).set_index("axis").loc["own"]
        assert low <= row["p"] <= high
        assert row["null_mean"] == pytest.approx(2 / (len(where) - 1), abs=0.005)  # chance, by degrees of freedom
    assert row["score"] < 0.05 and row["n"] == 30


def test_object_tokens_do_not_count():
    maps = planted(strength=0, noise=0.1)
    where = token_sets.background(GRID, "horizontal")
    before = background.score_rows(maps[:, None], GRID, "horizontal", where)
    for slot in range(3):
        maps[:, token_sets.object_tokens(GRID, "horizontal", slot), slot] += 100
    assert background.score_rows(maps[:, None], GRID, "horizontal", where).equals(before)
    assert background.strip_score(maps.mean(0), background.strip_index(GRID, "horizontal")) > 0.05


def test_intervals_cover_and_the_correction_undoes_the_noise_of_few_images():
    """200 samples of 20 noisy images of a map whose own score is 1: the plain score is too low, the corrected one much
    less so; intervals cover what the score of 20 images is on average."""
    strip = background.strip_index(GRID, "horizontal")
    samples = [
        background.strip_score_estimate(planted(noise=1.5, count=20, seed=seed)[:, None], strip) for seed in range(200)
    ]
    expected = np.mean([found.value for found, _ in samples])
    corrected = np.mean([value for _, value in samples])
    assert all(found.low <= found.value <= found.high for found, _ in samples)
    assert 0.9 <= np.mean([found.low <= expected <= found.high for found, _ in samples]) <= 1
    assert expected < 0.72 and 1 - corrected < (1 - expected) / 2


def test_maps_of_vertical_lines_are_transposed():
    rows, columns = planted("horizontal"), planted("vertical")
    assert np.array_equal(background.as_horizontal(columns, "vertical"), rows)
    assert np.array_equal(background.as_horizontal(rows, "horizontal"), rows)


@pytest.mark.parametrize("orientation", AXES)
def test_profile_follows_the_axis(orientation):
    where = token_sets.background(GRID, orientation)
    table = background.profile(planted(orientation, count=2), GRID, orientation, where)
    mean = table.groupby(["position", "place"])["probability"].mean().unstack()
    assert mean.to_numpy().argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert set(table["image"]) == {0, 1}


# --- place in the line or on the canvas -----------------------------------------------------------------------


@pytest.mark.parametrize("orientation", AXES)
def test_the_two_places_agree_where_probes_are_trained_and_differ_in_compact_lines_at_the_edge(orientation):
    strip = background.strip_index(GRID, orientation)
    assert np.array_equal(background.nearest_place(GRID, orientation), strip)
    compact, shift = replace(GRID, gap=0), (0, -3) if orientation == "horizontal" else (-3, 0)
    for slot in range(3):
        members = token_sets.object_tokens(compact, orientation, slot, shift)
        assert set(background.nearest_place(compact, orientation, shift)[members]) == {slot}
    third = token_sets.object_tokens(compact, orientation, 2, shift)
    assert set(strip[third]) == {1}  # the last of the line stands in the middle strip


def line(code, gap, along):
    """A line whose tokens carry only a code of their place (one-hot), absolute or relative."""
    grid, shift = replace(GRID, gap=gap), (0, along)
    place = (
        background.strip_index(grid, "horizontal")
        if code == "absolute"
        else background.nearest_place(grid, "horizontal", shift)
    )
    count = 4
    images = torch.tensor(np.eye(3)[place], dtype=torch.float32).expand(count, -1, -1)
    triples = scenes.ordered_triples("squares", grid)[:count]
    return LineImages("squares", tuple(triples), grid, "horizontal", shift, images)


def on_objects(shown, code):
    """The lines with a code [image, place, d] on the tokens of their objects and nothing elsewhere."""
    images = torch.zeros(len(shown.images), TOKENS, code.shape[-1])
    for slot, where in enumerate(shown.place_tokens):
        images[:, where] = code[:, slot, None]
    return replace(shown, images=images)


@pytest.mark.parametrize("code", ["absolute", "relative"])
def test_readings_name_the_planted_code(code):
    probe = Probe(torch.eye(3), torch.zeros(3))
    table = background.readings(probe, line(code, gap=0, along=-3))
    assert set(table["part"]) == {"object", "background"} and (table[code] == 1).all()
    assert (table[{"absolute": "relative", "relative": "absolute"}[code]] == 0).all() and (table["neither"] == 0).all()
    assert background.readings(probe, line(code, gap=2, along=0)).empty  # both places agree: nothing to tell


def test_only_a_relative_code_is_read_at_a_place_never_seen():
    places = [(1, -2), (1, 2), (0, 3), (0, -3)]
    found = {
        code: background.unseen_place([line(code, *p) for p in places], 3, "logistic")
        for code in ("absolute", "relative")
    }
    assert (found["relative"] == 1).all()
    assert (found["absolute"] < 0.7).all()


def test_pictures_of_the_tested_triples_are_not_trained_on():
    """Tokens that only say which object of which picture they show, the same wherever the line stands."""
    places = [line("relative", *p) for p in ((1, -2), (1, 2))]
    wide = [on_objects(p, torch.eye(12).reshape(4, 3, 12)) for p in places]
    assert background.unseen_place(wide, 0, "logistic").max() <= 1 / 3 + 1e-9


def test_lines_at_the_tested_place_are_not_trained_on():
    """Tokens that say the place in the line in a way of their own wherever the line stands."""
    places = [line("relative", *p) for p in ((1, -2), (1, 2))]
    own = [on_objects(p, torch.eye(6)[3 * k : 3 * k + 3].expand(4, -1, -1)) for k, p in enumerate(places)]
    assert background.unseen_place(own, 0, "logistic").max() <= 1 / 3 + 1e-9


def test_both_questions_about_each_picture_are_answered():
    vlm = tiny("reference")
    lines = LineImages.of(vlm, "squares", scenes.ordered_triples("squares", vlm.grid)[:3], "vertical")
    assert background.correct_answers(vlm, lines).shape == (3, 2)


def test_strips_beyond_bare_is_the_score_minus_that_of_the_bare_picture():
    """A perfect strip map over one that is half noise: the difference, with the score's own interval moved along."""
    strip = np.repeat([0, 1, 2], 20)
    perfect = np.stack([np.eye(3)[strip]] * 6)[:, None]
    flat = np.full((1, 60, 3), 1 / 3)
    found = background.beyond_bare(perfect, flat, strip)
    assert found.value == pytest.approx(1) and found.n == 6
    assert background.beyond_bare(perfect, perfect[0], strip).value == pytest.approx(0)


def test_a_map_that_is_flat_up_to_rounding_has_no_strips():
    strip = np.repeat([0, 1, 2], 36)
    rng = np.random.default_rng(0)
    flat = np.tile(np.float32([0.9731, 0.0202, 0.0067]), (108, 1))
    rounded = flat + np.float32(1.2e-7) * rng.integers(-1, 2, flat.shape).astype(np.float32)
    assert background.strip_score(flat, strip) == background.strip_score(rounded, strip) == 0


def test_two_probes_are_scored_each_on_its_own_pictures():
    """One half perfect strips, the other flat: the mean of 1 and 0, whatever both together would look like."""
    strip = np.repeat([0, 1, 2], 20)
    perfect, flat = np.eye(3)[strip], np.full((60, 3), 1 / 3)
    maps = np.stack([perfect] * 4 + [flat] * 4)[:, None]
    found = background.unseen_beyond_bare(maps, np.stack([flat, flat]), strip)
    assert found.value == pytest.approx(0.5) and found.n == 8


def test_lone_entities_are_read_token_by_token():
    """A probe that says "first" of everything: right at the first place alone, and each object's shares sum to 1."""
    vlm = tiny("reference")
    lines = LineImages.of(vlm, "squares", scenes.ordered_triples("squares", vlm.grid)[:2], "horizontal")
    constant = background.random_probe(background.order_probe(lines, [0, 1]), 0)
    constant = replace(constant, weight=torch.zeros_like(constant.weight), bias=torch.tensor([1.0, 0.0, 0.0]))
    found = background.lone_readings(vlm, constant, "squares", "horizontal")
    assert len(found) == 3 * 3 * len(scenes.entities("squares", vlm.grid))
    assert (found["share"] == (found["read"] == 0)).all()
    assert np.allclose(found.groupby("image")["share"].sum(), 1)


# --- several probes and places --------------------------------------------------------------------------------


def test_mean_maps_are_averages_over_images_by_name():
    shown, other = planted(noise=1.0, count=3), planted("vertical", count=1)
    table = background.mean_maps({"shown": shown, "other": other})
    for name, maps in (("shown", shown), ("other", other)):
        own = table[table["map"] == name]
        assert own["token"].tolist() == list(range(TOKENS))
        assert np.array_equal(own[["first", "middle", "last"]], maps.mean(0))


def test_maps_of_both_axes_have_upright_strips():
    where = token_sets.background(GRID, "horizontal")
    found = {axis: (planted(axis, count=4), planted(axis, count=2)) for axis in AXES}
    shown, bare = background.both_axes(found, where)
    assert shown.shape == (4, 2, len(where), 3) and bare.shape == (2, 2, len(where), 3)
    assert (shown == planted()[0][where]).all() and (bare == planted()[0][where]).all()


def test_controls_read_the_test_pictures_only():
    lines = line("absolute", 2, 0)
    probe = background.order_probe(lines, [0, 1])
    found = background.control_maps(lines, probe, [0, 1], [3], shuffles=2, random_probes=3)
    assert {name: maps.shape for name, maps in found.items()} == {
        "shuffled": (1, 2, TOKENS, 3),
        "random": (1, 3, TOKENS, 3),
    }
    for k in range(2):
        shuffled = background.order_probe(lines, [0, 1], shuffled=k)
        assert np.allclose(found["shuffled"][:, k], background.token_maps(shuffled, lines.images[[3]]))
    for k in range(3):
        drawn = background.token_maps(background.random_probe(probe, k), lines.images[[3]])
        assert np.allclose(found["random"][:, k], drawn)


def test_probes_read_pictures_of_entities_that_they_never_saw(monkeypatch):
    vlm, trained, train = tiny("reference"), [], background.order_probe

    def recorded(lines, images, **options):
        trained.append(lines)
        return train(lines, images, **options)

    monkeypatch.setattr(background, "order_probe", recorded)
    empty = vlm.encode([scenes.line_scene((None,) * 3, vlm.grid, "horizontal").image(vlm.grid.canvas)], progress=False)
    maps, bare = background.unseen_entities(vlm, "squares", "horizontal", empty)
    one, other = ({entity for triple in lines.triples for entity in triple} for lines in trained)
    assert not one & other and one | other == set(scenes.entities("squares", vlm.grid))
    count = len(trained[0].triples)
    probe = train(trained[0], range(count), seed=0)  # its maps are the first half, in both arrays
    assert np.allclose(maps[: len(trained[1].triples)], background.token_maps(probe, trained[1].images), atol=1e-6)
    assert len(maps) == sum(len(lines.triples) for lines in trained) and len(bare) == 2
    assert np.allclose(bare[:1], background.token_maps(probe, empty), atol=1e-6)


def test_shares_at_a_place_are_those_of_its_measures():
    vlm = tiny("reference")
    triples = scenes.ordered_triples("squares", vlm.grid)[:4]
    places = [LineImages.of(vlm, "squares", triples, "horizontal", *place) for place in ((1, 0), (0, -1), (0, 1))]
    probe = background.order_probe(places[0], range(4))
    usual, moved = (background.shares_at_place(vlm, probe, places, number) for number in (0, 1))
    names = {"probe of the usual place", "probe of all other places", "correct answers"}
    assert set(usual["measure"]) == names  # both places agree there: nothing to tell
    values = moved.set_index("measure")["value"]
    assert values["probe of all other places"].tolist() == background.unseen_place(places, 1).tolist()
    assert values["correct answers"].tolist() == background.correct_answers(vlm, places[1]).mean(1).tolist()
    read = background.readings(probe, places[1])
    for part, own in read.groupby("part"):
        assert values[f"{part} tokens read as absolute"].tolist() == own["absolute"].tolist()
    assert len(moved) == len(names) * 4 + read.drop(columns=["image", "part"]).size


def test_no_statement_about_strips_where_the_probe_fails_on_objects():
    text = background.strips_in_words(
        {"squares": "reproduced", "shapes": "inconclusive"}, {"squares": 0.9, "shapes": 0.5}
    )
    squares, shapes = text.splitlines()
    assert squares == "Strips on white, squares: reproduced."
    assert shapes.startswith(
        "Strips on white, shapes: inconclusive (the probe is correct on only 0.50 of object tokens"
    )
