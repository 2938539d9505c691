"""Effects with known answers."""

import numpy as np
import pandas as pd

from lib.analysis import effects
from lib.analysis.statistics import Estimate
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
                pair_of = {"pair": pair, "couple": pair, "run": run, **where, "role": role}
                rows.append(pair_of | {"probability": (1 + sign * value) / 2})
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


def test_pairs_about_the_same_two_pictures_count_once():
    """Every pair twice, with the two pictures in the other order: the same interval, and as many units as before."""
    rng = np.random.default_rng(0)
    clean, other, patched = (rng.uniform(low, low + 1, 20) for low in (-1, 0.5, -0.5))
    once = planted(clean, other, code_a=patched)
    twice = pd.concat([once, once.assign(pair=once["pair"] + 20)], ignore_index=True)
    pd.testing.assert_frame_equal(effects.summarise(twice, ["region"]), effects.summarise(once, ["region"]))
    independent = effects.summarise(twice.assign(couple=twice["pair"]), ["region"])
    assert independent.iloc[0]["high"] - independent.iloc[0]["low"] < 0.8 * np.ptp(
        effects.summarise(once, ["region"]).iloc[0][["low", "high"]]
    )
    assert (effects.couples(twice) == np.tile(np.arange(20), 2)).all()


def test_without_a_difference_there_is_no_effect_and_no_verdict():
    table = planted([-0.5, -0.7], [-0.5, -0.7], code_a=[0.2, 0.1])
    row = effects.summarise(table, ["region"]).iloc[0]
    assert np.isnan(row["effect"]) and np.isnan(row["low"])
    estimate = Estimate(row["effect"], row["low"], row["high"], 50)
    recorded = ledger.row("strip_code", estimate, "02_x", "cell")
    assert recorded["value"] is None and recorded["verdict"] == "inconclusive"
