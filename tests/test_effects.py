"""Effects and shares with known answers, and the calibration rule."""

import numpy as np
import pandas as pd
import pytest

from lib.analysis import effects
from lib.artifact import ledger


def planted(clean, counterfactual, **patched):
    """A sweep table of two roles: swings of each pair's clean, counterfactual and patched runs (by region)."""
    rows = []
    runs = {("clean", "none"): clean, ("counterfactual", "none"): counterfactual}
    runs |= {("patched", name): values for name, values in patched.items()}
    for (run, name), values in runs.items():
        moves, _, region = name.partition("_")
        for pair, value in enumerate(values):
            for role, sign in (("clean", -1), ("counterfactual", 1)):
                where = {"slot": 0 if run == "patched" else -1, "moves": moves, "region": region or "none"}
                rows.append({"pair": pair, "run": run, **where, "role": role, "probability": (1 + sign * value) / 2})
    return pd.DataFrame(rows)


# --- effects --------------------------------------------------------------------------------------------------


def test_effects_of_known_size():
    """Half-way in every pair; a quarter on average; and the baselines themselves."""
    rng = np.random.default_rng(0)
    clean, other = rng.uniform(-1, -0.5, 40), rng.uniform(0.5, 1, 40)
    uneven = np.where(np.arange(40) % 2, clean, clean + (other - clean) / 2)
    table = planted(clean, other, code_a=(clean + other) / 2, code_b=uneven, code_c=clean, code_d=other)
    out = effects.summarise(table, ["region"]).set_index("region")
    assert np.allclose(out.loc["a", ["effect", "low", "high"]].astype(float), 0.5) and out.loc["a", "n"] == 40
    assert out.loc["b", "low"] < 0.25 < out.loc["b", "high"] and out.loc["b", "high"] - out.loc["b", "low"] < 0.25
    assert np.allclose(out.loc[["c", "d"], "effect"], [0, 1])
    gap = effects.contrast(table, "d", "a")
    assert np.allclose([gap.value, gap.low, gap.high], 0.5)


def test_without_a_difference_there_is_no_effect_and_no_verdict():
    table = planted([-0.5, -0.7], [-0.5, -0.7], code_a=[0.2, 0.1])
    row = effects.summarise(table, ["region"]).iloc[0]
    assert np.isnan(row["effect"]) and np.isnan(row["low"])
    with pytest.raises(ValueError, match="not a number"):
        ledger.MEASURES["strip_effect"].verdict(row["low"], row["high"], 50)


# --- shares ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "entity", "reading", "share"),
    [
        (1, 0, "divided", 1),
        (0, 1, "divided", 0),
        (0.6, 0.2, "divided", 0.75),
        (0.1, 0.1, "neither", None),
        (0.9, 0.8, "both", None),
        (0.9, 0.7, "divided", 0.5625),
    ],
)
def test_shares_of_known_effects(code, entity, reading, share):
    rng = np.random.default_rng(2)
    clean, other = rng.uniform(-1, -0.8, 30), rng.uniform(0.8, 1, 30)
    between = other - clean
    table = planted(clean, other, code_strip=clean + code * between, entity_strip=clean + entity * between)
    row = effects.shares(table, ["region"]).iloc[0]
    assert row["code"] == pytest.approx(code) and row["entity"] == pytest.approx(entity)
    assert row["reading"] == reading and row["n"] == 30
    if share is None:
        assert np.isnan(row["share"]) and np.isnan(row["low"])
    else:
        assert row["share"] == pytest.approx(share, abs=1e-6) and row["low"] <= share + 1e-6 <= row["high"] + 2e-6


def test_shares_need_both_interchanges():
    table = planted([-1, -1], [1, 1], code_strip=[1, 1], entity_strip=[-1, -1], code_middle=[-1, -1])
    assert effects.shares(table, ["region"])["region"].tolist() == ["strip"]


# --- calibration ----------------------------------------------------------------------------------------------

RIGHT = {"vision_only": (0.97, 1.01), "backbone_only": (-0.01, 0.05)}


@pytest.mark.parametrize(
    ("model", "region", "reading", "interval", "sentence"),
    [
        ("vision_only", "object", "divided", (0.95, 1.02), "known answer for both"),
        ("vision_only", "object", "neither", (np.nan, np.nan), "known answer for both"),
        ("vision_only", "object", "both", (np.nan, np.nan), "fails on vision_only"),
        ("vision_only", "object", "divided", (0.85, 1.0), "fails on vision_only"),
        ("vision_only", "strip", "neither", (np.nan, np.nan), "fails on vision_only"),
        ("backbone_only", "strip", "divided", (0.05, 0.15), "fails on backbone_only"),
        ("backbone_only", "object", "divided", (0.2, 0.3), "fails on backbone_only"),
        ("backbone_only", None, None, None, "Not calibrated in full: backbone_only"),
    ],
)
def test_the_calibration_rule(model, region, reading, interval, sentence):
    """All rows as expected but the one in question; region None: the model is not there at all."""
    known = [name for name in RIGHT if region or name != model]
    rows = [("reference", "strip", "divided", 0.4, 0.6)]
    rows += [(name, where, "divided", *RIGHT[name]) for name in known for where in ("object", "strip")]
    rows += [(model, region, reading, *interval)] if region else []
    assert sentence in effects.calibration_verdict(
        pd.DataFrame(rows, columns=["model", "region", "reading", "low", "high"])
    )
