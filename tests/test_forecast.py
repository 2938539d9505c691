"""The forecast of `lib.run --plan`: memory by the configuration, time by ratio, and what does not fit."""

from dataclasses import replace

import torch

from lib.artifact import forecast
from lib.artifact.forecast import GIB, Memory
from lib.artifact.notebooks import choose_notebooks
from lib.engine.batching import budget
from lib.engine.checkpoints import shipped
from lib.places import NOTEBOOKS

CPU = torch.device("cpu")


def test_sizes_come_from_the_configuration():
    size = forecast.size_of(str(shipped()["reference"]))
    stored = (shipped()["reference"] / "model.safetensors").stat().st_size
    assert stored / 4.1 < size.weights < stored  # one to four bytes a weight
    assert size.layers > 0 and size.encoder_layers > 0


def test_memory_is_that_of_the_weights_and_of_the_budget_of_a_batch(monkeypatch):
    size = forecast.Size(weights=10, layers=4, encoder_layers=3)
    room = forecast.memory(size, torch.bfloat16, CPU)
    assert (room.weights, room.batch) == (20, budget(CPU)) and room.batch < room.free
    monkeypatch.setattr(forecast, "free_on_the_host", lambda: 100)
    assert not forecast.memory(size, torch.bfloat16, CPU).fits


def test_what_does_not_fit_is_said():
    room = Memory(weights=2 * GIB, batch=GIB, free=3 * GIB)
    assert forecast.misfits(room) == []
    assert "smaller model" in forecast.misfits(replace(room, free=3 * GIB - 1))[0]


def test_times_scale_the_published_ones():
    books = choose_notebooks(["02", "03"], NOTEBOOKS)
    for each in forecast.times(books, ratio=3.0, slots=2.0):
        assert (each.low, each.high) == (3 * each.published, 6 * each.published)
        assert each.notebook in each.line() and "min" in each.line()
    assert all("not known" in each.line() for each in forecast.times(books, None, 1.0))
