"""The benchmarks' bookkeeping: shares of the engine's time, and every step of the run at a published size."""

import pytest
import torch
from tiny import tiny

from benchmarks import models, real_size
from benchmarks.memory import HIGH_WATER
from benchmarks.sweeps import LastToken, Tokens, where_time_goes
from lib import places
from lib.stimuli.pairs import last_token_pairs, mirrored_pairs


@pytest.mark.parametrize(("kind", "draw"), [(LastToken, last_token_pairs), (Tokens, mirrored_pairs)])
def test_shares_of_time_are_shares(kind, draw):
    vlm = tiny("reference")
    table = where_time_goes(kind(vlm, draw("squares", vlm.grid, 1), list(vlm.slots)))
    shares = table.set_index("part")["share"]
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all() and shares[["prefill", "ask", "rest"]].all()
    assert "run" not in vars(vlm.language) and vlm.logits == vlm.language.logits  # the model is as it was


@pytest.mark.skipif(not HIGH_WATER.exists(), reason="the memory of a step can only be read on Linux")
def test_every_step_of_the_published_size_runs_on_a_tiny_model(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "RUNS", tmp_path / "runs")
    folder = tmp_path / "tiny-qwen2-vl"
    real_size.write(folder, small=True)
    table, contracts = real_size.steps(folder)
    assert contracts["holds"].all() and len(contracts) == 6
    assert (tmp_path / "runs/by-hand/tiny-qwen2-vl/certificate.json").exists()
    assert len(table) == 6 and table["step"].is_unique and (table["peak"] > table["growth"]).all()
    assert (table[["cpu_seconds", "prompts", "prompt_seconds"]] > 0).all(axis=None)


def test_the_published_size_is_qwen2_vl_2b():
    """2.21 thousand million weights, as the hub counts them: output and input words share a table."""
    model_class, config, _ = models._parts("qwen2-vl-2b", "qwen2-vl", 151655, 151656, None, None)
    with torch.device("meta"):
        model = model_class(config)
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e9, 2) == 2.21
