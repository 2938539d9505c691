"""Figures of notebooks 01, 03, 04 and 05 from small tables: every row of a table is on the page, where it belongs."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from lib.artifact import (
    background_figures,
    behaviour_figures,
    component_figures,
    enhancement_figures,
    figures,
    probe_figures,
)
from lib.stimuli import grids, questions, token_sets

GRID = grids.GRIDS["reference"]
AXES = grids.ORIENTATIONS
BAND = {"low": 0.2, "high": 0.8}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table(value: str, **columns) -> pd.DataFrame:
    """Every combination of the columns' entries, with values of their own inside the band."""
    rows = pd.DataFrame(product(*columns.values()), columns=list(columns))
    return rows.assign(**{value: np.linspace(0.3, 0.7, len(rows))}, **BAND)


def heights(axis, label: str | None = None) -> list[float]:
    """What the lines of an axis with this label show."""
    drawn = [line for line in axis.lines if label is None or line.get_label() == label]
    return [height for line in drawn for height in line.get_ydata()]


def dots(axis) -> list[float]:
    return [height for bars in axis.containers for height in bars.lines[0].get_ydata()]


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_map_is_a_column_with_its_objects_outlined():
    tokens = GRID.side**2
    maps = pd.DataFrame(np.random.default_rng(0).random((2 * tokens, 3)), columns=background_figures.PLACES)
    maps["map"] = np.repeat(["squares, left-right", "empty"], tokens)
    objects = token_sets.object_tokens(GRID, "horizontal", 0)
    figure = background_figures.place_maps(maps, {"squares, left-right": objects}, GRID)
    axes = np.array(figure.axes[:6]).reshape(3, 2)
    assert [axis.get_title() for axis in axes[0]] == ["squares,\nleft-right", "empty"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["P(first)", "P(middle)", "P(last)"]
    for (row, column), axis in np.ndenumerate(axes):
        own = maps.iloc[column * tokens : (column + 1) * tokens, row]
        assert np.array_equal(axis.images[0].get_array().ravel(), own)
        outlines = [each for each in axis.collections if isinstance(each, LineCollection)]
        assert sum(len(each.get_segments()) for each in outlines) == (4 * GRID.entity if column == 0 else 0)


def test_profiles_lie_in_the_panel_of_their_setting_and_axis():
    rows = table("probability", setting=questions.SETTINGS, orientation=AXES, place=range(3), position=range(GRID.side))
    figure = background_figures.profiles(rows)
    for (axis, setting), panel in zip(product(AXES, questions.SETTINGS), figure.axes, strict=True):
        own = rows[(rows["orientation"] == axis) & (rows["setting"] == setting)]
        assert panel.get_title() == f"{setting}, {figures.AXES[axis]}"
        assert heights(panel) == own["probability"].tolist()
    assert labels(figure) == ["P(first)", "P(middle)", "P(last)"]


def test_strip_scores_stand_above_agreements():
    lines = list(figures.AXES.values())
    rows = table("score", setting=questions.SETTINGS, probe=["order", "random"], line=lines)
    rows = rows.assign(agreement=rows["score"] + 0.1, agreement_low=0.1, agreement_high=0.9)
    axes = np.array(background_figures.strip_scores(rows).axes).reshape(2, 3)
    for column, setting in zip(axes.T, questions.SETTINGS, strict=True):
        own = rows[rows["setting"] == setting].sort_values("line", key=lambda line: line.map(lines.index))
        assert dots(column[0]) == own["score"].tolist() and dots(column[1]) == own["agreement"].tolist()
        assert [tick.get_text() for tick in column[1].get_xticklabels()] == ["order", "random"]


@pytest.mark.parametrize(("score", "top"), [(0.2, 0.4), (0.5, 0.55), (0.99, 1.03)])
def test_ranges_of_strip_scores_end_where_the_values_do(score, top):
    rows = table("score", setting=questions.SETTINGS, probe=["order"], line=list(figures.AXES.values()))
    rows = rows.assign(score=score, low=score, high=score, agreement=1.0, agreement_low=1.0, agreement_high=1.0)
    axes = np.array(background_figures.strip_scores(rows).axes).reshape(2, 3)
    assert all(axis.get_ylim()[1] == pytest.approx(top) for axis in axes[0])
    assert all(axis.get_ylim()[1] == pytest.approx(1.03) for axis in axes[1])


def test_shuffled_readings_are_ticks_beside_those_they_belong_to():
    named = [*background_figures.READINGS, "canvas_shuffled", "line_shuffled"]
    rows = table(
        "value", lines=["left-right\ngap 0", "left-right\ngap 1"], tokens=["object", "background"], reading=named
    )
    figure = background_figures.readings(rows.assign(n=30))
    for name, axis in zip(("object", "background"), figure.axes, strict=True):
        own = rows[rows["tokens"] == name].set_index("reading")["value"]
        assert dots(axis) == [value for reading in background_figures.READINGS for value in own[reading]]
        assert heights(axis, "shuffled") == [*own["canvas_shuffled"], *own["line_shuffled"]]
    assert labels(figure) == ["shuffled", *background_figures.READINGS]


def test_edits_keep_the_order_of_the_rows():
    rows = table("effect", edited=["objects", "background", "both"], setting=questions.SETTINGS)
    (axis,) = background_figures.sufficiency(rows).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["objects", "background", "both"]
    assert sorted(dots(axis)) == rows["effect"].tolist()


def test_doses_are_drawn_for_the_named_regions_only():
    rows = table("effect", region=["object", "random", "in_place_both"], tokens=[0, 1, 4])
    rows = rows.assign(flipped=rows["effect"] / 2, flipped_low=0.1, flipped_high=0.9)
    names = {"random": "at random", "object": "of strips"}
    figure = background_figures.dose(rows, names)
    for axis, column in zip(figure.axes, ("effect", "flipped"), strict=True):
        for region, label in names.items():
            assert heights(axis, label) == rows.loc[rows["region"] == region, column].tolist()
        assert list(axis.get_xticks()) == [0, 1, 4]
    assert labels(figure) == list(names.values())


def test_the_two_controls_of_the_dose_differ_in_grey():
    rows = table("effect", region=["random", "random_alone"], tokens=[0, 1, 4])
    rows = rows.assign(flipped=rows["effect"], flipped_low=0.1, flipped_high=0.9)
    for axis in background_figures.dose(rows, {"random": "a", "random_alone": "b"}).axes:
        first, second = (line for line in axis.lines if line.get_label() in "ab")
        assert first.get_marker() != second.get_marker() and first.get_linestyle() != second.get_linestyle()


def components(effect: float) -> pd.DataFrame:
    """Two layers of two heads and whole outputs, for both designs; one effect is larger than the others."""
    cells = pd.DataFrame({"head": [0, 1, -1, -1], "site": ["head 0", "head 1", "attention", "mlp"]})
    shown = pd.DataFrame(component_figures.PANELS, columns=["title", "design", "toward", "token", "value"])
    rows = shown.drop(columns=["title", "value"]).drop_duplicates().merge(cells, how="cross")
    rows = rows.merge(pd.DataFrame({"layer": [0, 1]}), how="cross")
    rows = rows.assign(scale="logit", n=8, effect=0.1, direct=0.005, beyond_null=rows["head"] != 1)
    rows.loc[0, "effect"] = effect
    return rows


@pytest.mark.parametrize(("effect", "extends"), [(0.99, "neither"), (1.4, "both")])
def test_colours_of_components_reach_from_minus_one_to_one(effect, extends):
    figure = component_figures.heat_maps(components(effect))
    panels = figure.axes[: len(component_figures.PANELS)]
    assert all(panel.images[0].get_clim() == (-1, 1) for panel in panels)
    assert panels[-1].images[0].colorbar.extend == extends
    assert panels[0].images[0].get_array()[0, 0] == effect


def test_components_within_the_null_are_hatched_and_have_no_number():
    figure = component_figures.heat_maps(components(0.9))
    for panel, (*_, value) in zip(figure.axes, component_figures.PANELS, strict=False):
        hidden = 8 if value == "direct" else 2  # all direct effects are below .01; head 1 of both layers is the null
        assert len(panel.patches) == hidden and len(panel.texts) == 8 - hidden


def test_levels_of_random_sets_cross_only_rows_that_are_matched_in_size():
    names = ["order", "added", "slot 2"]
    scores = pd.DataFrame({"repaired": [0.3, 0.2, 0.1], "broken": [0.1, 0.2, 0.3]}, index=names)
    for column in ("repaired", "broken"):
        scores[f"{column}_low"], scores[f"{column}_high"] = scores[column] - 0.05, scores[column] + 0.05
    chance = pd.DataFrame({"repaired": [0.2, 0.4], "broken": [0.1, 0.1]})
    (axis,) = enhancement_figures.shares(scores, names, chance, names[:2]).axes
    lines = {line.get_label(): line.get_segments() for line in axis.collections if "mean" in line.get_label()}
    for column, height in (("repaired", 0.3), ("broken", 0.1)):
        (line,) = lines[f"{column}, mean of the random sets"]
        assert np.allclose(line, [[height, -0.5], [height, 1.5]])
    with pytest.raises(ValueError, match="must come first"):
        enhancement_figures.shares(scores, names, chance, ["slot 2"])


def test_probes_over_slots_show_both_tasks_with_and_without_order():
    tests = ["entities", "control", "shuffled"]
    rows = table(
        "correct", task=["place", "relation"], ablated=[False, True], orientation=AXES, test=tests, slot=range(3)
    )
    figure = probe_figures.over_slots(rows)
    for (task, ablated), axis in zip(product(("place", "relation"), (False, True)), figure.axes, strict=True):
        own = rows[(rows["task"] == task) & (rows["ablated"] == ablated)].set_index(["orientation", "test"])["correct"]
        assert axis.get_title() == f"{task}, order {'removed' if ablated else 'intact'}"
        for orientation, named in figures.AXES.items():
            assert heights(axis, f"unseen entities, {named}") == own[orientation, "entities"].tolist()
        assert heights(axis, "shuffled, left-right") == own["horizontal", "shuffled"].tolist()
        assert heights(axis, "chance") == [probe_figures.CHANCE[task]] * 2


def test_accuracies_stand_beside_those_of_the_paper():
    rows = table("accuracy", setting=["squares", "naturalistic"], direction=["left", "right"])
    figure = behaviour_figures.accuracies(rows, {"squares": {"model a": 0.9, "model b": 0.5, "model c": 0.7}})
    (axis,) = figure.axes
    assert sorted(dots(axis)) == rows["accuracy"].tolist()
    assert heights(axis, "paper, model a") == [0.9] and heights(axis, "paper, model b") == [0.5]
    assert {"left", "right", "paper, model a"} <= set(labels(figure))
