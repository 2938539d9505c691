"""Figures of notebook 02: what stands in them beside the points."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.analysis import fingerprint
from lib.artifact import drawings
from lib.engine import embedded


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def with_bounds(rows, columns, value):
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(low=table[value] - 0.1, high=table[value] + 0.1)


def words(figure):
    """All texts of a figure."""
    return [text.get_text() for text in figure.findobj(plt.Text)]


def test_slots_name_sources_and_pairs():
    rows = [(axis, edit, slot, 12, 0.5) for axis in drawings.AXES for edit in fingerprint.RIVALS.values()
            for slot in range(3)]  # fmt: skip
    table = with_bounds(rows, ["orientation", "edit", "slot", "n", "effect"], "effect")
    said = words(drawings.slots(table))
    assert "left-right (n = 12 pairs)" in said and "P: token place, backbone" in said
    said = words(drawings.slots(table, names=fingerprint.NAMES_INSIDE))
    assert "P: place of the patches" in said and "O: object-local code" in said


def test_planted_models_stand_apart():
    names = ["reference", "joint", *embedded.PLANTED]
    rows = [(name, axis, rival, 16, 0.5) for name in names for axis in drawings.AXES for rival in fingerprint.RIVALS]
    table = with_bounds(rows, ["model", "orientation", "rival", "n", "value"], "value")
    figure = drawings.models(table)
    places = figure.axes[1].get_xticks()
    assert np.diff(places).argmax() == 1 and np.diff(places)[1] > 1.5  # between joint and the first planted one
    said = words(figure)
    assert "planted" in said and "above-below (n = 16 pairs a model)" in said and set(names) <= set(said)


def test_a_checkpoint_that_cannot_be_read_is_named_and_not_drawn():
    kinds = [("qwen2-vl-7b", np.nan, "order is left"), ("pixtral-12b", np.nan, "not readable"),
             ("reference", 0.9, np.nan), ("gemma_style", 0.1, np.nan), ("split", 0.1, np.nan)]  # fmt: skip
    rows = [(name, "squares", axis, 32, 0.6, neither, 0.5, reading) for name, neither, reading in kinds
            for axis in drawings.AXES]  # fmt: skip
    columns = ["model", "setting", "orientation", "total", "accuracy", "names_neither", "intact", "reading"]
    figure = drawings.after_ablation(with_bounds(rows, columns, "accuracy"))
    said = "\n".join(words(figure))
    assert "pixtral-12b left out: correct 0.50 to 0.50" in said and "gemma_style" in said
    assert "squares, most answers name neither" in said and "pixtral-12b" not in [
        label.get_text() for label in figure.axes[0].get_xticklabels()
    ]
