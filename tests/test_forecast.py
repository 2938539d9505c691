"""The forecast of `lib.run --plan`: memory by the configuration, time by ratio, and what does not fit."""

from dataclasses import replace

import torch

from lib.artifact import forecast
from lib.artifact.forecast import GIB, Memory
from lib.artifact.notebooks import choose_notebooks
from lib.engine.checkpoints import shipped
from lib.places import NOTEBOOKS

CPU = torch.device("cpu")


def test_sizes_come_from_the_configuration():
    size = forecast.size_of(str(shipped()["reference"]))
    stored = (shipped()["reference"] / "model.safetensors").stat().st_size
    assert stored / 4.1 < size.weights < stored  # one to four bytes a weight
    assert size.layers > 0 and size.encoder_layers > 0 and size.per_slot > 0


def test_states_inside_the_encoder_grow_with_the_pairs_of_notebook_02():
    size = forecast.Size(weights=10, layers=4, encoder_layers=3, per_slot=100)
    books = choose_notebooks(["02"], NOTEBOOKS)
    pairs = books[0].parameters["pairs_elsewhere"]
    room = forecast.memory(size, books, torch.float32, CPU)
    assert room.encoder == 2 * 4 * pairs * 4 * 100 * 4 and room.weights == 40
    assert forecast.memory(size, choose_notebooks(["03"], NOTEBOOKS), torch.float32, CPU).encoder == 0


def test_what_does_not_fit_is_said():
    room = Memory(weights=2 * GIB, batch=GIB, encoder=GIB, free=8 * GIB)
    assert forecast.misfits(room) == []
    assert "pairs_elsewhere" in forecast.misfits(replace(room, free=3 * GIB))[0]
    assert "smaller model" in forecast.misfits(replace(room, free=2 * GIB))[0]


def test_times_scale_the_published_ones():
    books = choose_notebooks(["02", "03"], NOTEBOOKS)
    for each in forecast.times(books, ratio=3.0, slots=2.0):
        assert (each.low, each.high) == (3 * each.published, 6 * each.published)
        assert each.notebook in each.line() and "min" in each.line()
    assert all("not known" in each.line() for each in forecast.times(books, None, 1.0))
