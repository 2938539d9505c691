"""Figures: equal bytes for equal figures, numbers beside pictures, looks that differ in grey."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import places
from lib.artifact import figures, storage
from lib.engine import embedded

DRAW = """
import pandas as pd
from lib.artifact import figures

figures.use_style()
fig, ax = figures.panels(width=3.4)
data = pd.DataFrame({"slot": [0, 1, 2], "probability": [.1, .5, .9], "low": [0, .4, .8], "high": [.2, .6, 1]})
figures.curve_with_band(ax, data, "slot", "probability", "order")
figures.level(ax, 1 / 3, "chance")
ax.legend()
figures.save(fig, "02_curve", data, model="reference", setting="squares")
"""


def test_equal_figures_are_equal_bytes_in_other_processes(tmp_path, monkeypatch):
    names = [f"by-hand/reference/figures/02_curve.{kind}" for kind in ("png", "pdf", "csv")]
    for seed in "12":  # hash seeds: no set order may reach a file
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / seed))
        subprocess.run([sys.executable, "-c", DRAW], cwd=places.ROOT, check=True)
    for name in names:
        first, second = ((tmp_path / seed / name).read_bytes() for seed in "12")
        assert first == second, name
        assert b"CreationDate" not in first and str(places.ROOT).encode() not in first
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "1"))
    saved = places.outputs("reference") / "figures/02_curve.csv"
    assert list(storage.read_csv(saved).probability) == [0.1, 0.5, 0.9]


def test_roles_drawn_together_differ_in_line_and_marker():
    for together in (
        ["clean", "order", "attribute"],
        ["clean", "counterfactual"],
        ["object", "strip", "background_strip", "middle", "random"],
        ["none", "order", "random", "shuffled"],
        ["held_out", "control", "shuffled"],
        ["left", "right", "above", "below"],
        ["encoder", "backbone"],
        ["repaired", "broken"],
    ):
        looks = [figures.ROLES[role] for role in together]
        for field in ("line", "marker"):
            assert len({getattr(look, field) for look in looks}) == len(looks), (together, field)


def test_models_differ_in_marker_and_those_of_one_colour_in_line():
    looks = [figures.ROLES[name] for name in embedded.NAMES]
    assert len({look.marker for look in looks}) == len({(look.colour, look.line) for look in looks}) == len(looks)


def test_outline_of_a_mask_is_its_border():
    mask = np.zeros((4, 4), dtype=bool)
    mask[1:3, 1:3] = True
    edges = figures.outline(mask)
    assert edges.shape == (8, 2, 2) and edges.min() == 1 and edges.max() == 3
    assert figures.outline(np.zeros((3, 3), dtype=bool)).shape == (0, 2, 2)


def test_maps_and_scenes_draw():
    fig, (left, right) = figures.panels(1, 2)
    shown = figures.heat_map(left, np.arange(9) / 9)
    assert shown.get_array().shape == (3, 3) and shown.get_array()[0, 2] == pytest.approx(2 / 9)
    figures.show_scene(right, np.zeros((12, 12, 3)), {"object": [4], "my own": [0, 1]}, side=3, pixels=4)
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["object", "my own"]
    plt.close(fig)


def test_save_refuses_what_cannot_be_traced(tmp_path, monkeypatch):
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path))
    fig, _ = figures.panels()
    with pytest.raises(ValueError, match="figure id"):
        figures.save(fig, "My figure", pd.DataFrame({"a": [1]}))
    with pytest.raises(ValueError, match="no data"):
        figures.save(fig, "x", pd.DataFrame())
    assert not any(tmp_path.iterdir())
    plt.close(fig)


def test_dots_of_panels_that_share_a_legend_take_the_order_given():
    _, ax = figures.panels()
    data = pd.DataFrame({"x": "a", "hue": ["two", "one"], "y": 0.2, "low": 0.1, "high": 0.3})
    figures.dots(ax, data, "x", "y", "hue", ["one", "two"])
    assert ax.get_legend_handles_labels()[1] == ["one", "two"]
    plt.close("all")


def test_tables_round_for_display_only():
    data = pd.DataFrame({"setting": ["a"], "accuracy": [0.98765]})
    shown = figures.table(data)
    assert shown.accuracy.iloc[0] == 0.99 and data.accuracy[0] == 0.98765
    assert shown.index.tolist() == [""], "numbers of rows say nothing"


def test_a_table_for_display_has_no_negative_zero():
    """The sign of a zero may change with the number of threads, the shown table may not."""
    shown = figures.table(pd.DataFrame({"name": ["a", "b"], "n": [1, 2], 0: [-0.001, 0.126]}))
    assert "-0" not in shown.to_string() and shown[0].tolist() == [0.0, 0.13]
    assert shown["n"].dtype == "int64"
