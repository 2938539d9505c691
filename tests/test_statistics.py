"""Statistics on data with known answers; the coverage of the intervals is measured by simulation."""

import re

import numpy as np
import pandas as pd
import pytest

from lib.analysis.statistics import (
    Estimate,
    bootstrap,
    decimals,
    detectable,
    difference,
    in_figures,
    mean,
    proportion,
    rank_p,
    ratio,
    summarise,
)
from lib.artifact import ledger
from lib.errors import UserError


def coverage(draw, truth, interval, trials=300):
    rng = np.random.default_rng(7)
    return np.mean([(e := interval(draw(rng), seed)).low <= truth <= e.high for seed, _ in enumerate(range(trials))])


@pytest.mark.parametrize(
    "name, draw, truth",
    [
        ("normal", lambda rng: rng.normal(2.0, 3.0, 50), 2.0),
        ("skewed", lambda rng: rng.beta(0.5, 2.0, 50), 0.2),
        ("yes or no", lambda rng: rng.random(50) < 0.7, 0.7),
        ("ten units", lambda rng: rng.normal(0.0, 1.0, 10), 0.0),
    ],
)
def test_coverage_of_a_mean(name, draw, truth, capsys):
    share = coverage(draw, truth, lambda x, seed: mean(x, resamples=600, seed=seed))
    with capsys.disabled():
        print(f"\ncoverage of the 95 % interval, {name}: {share:.3f}", end="")
    assert 0.91 <= share <= 0.985  # 300 trials: +- .025


def test_coverage_with_correlated_rows_needs_whole_units():
    def draw(rng):
        return np.repeat(rng.normal(size=30), 8) + 0.1 * rng.normal(size=240)

    units = np.repeat(np.arange(30), 8)
    whole = coverage(draw, 0, lambda x, seed: mean(x, units, resamples=400, seed=seed), 200)
    rows = coverage(draw, 0, lambda x, seed: mean(x, resamples=400, seed=seed), 200)
    assert whole > 0.9 and rows < 0.7


def test_coverage_of_differences_and_ratios():
    def pairs(rng):
        shared = rng.normal(size=40)
        return shared + rng.normal(0.5, 0.5, 40), shared + rng.normal(0.0, 0.5, 40)

    assert coverage(pairs, 0.5, lambda x, s: difference(*x, resamples=400, seed=s), 200) > 0.9

    def shares(rng):
        total = rng.uniform(1, 2, 50)
        return total * rng.uniform(0, 0.8, 50), total

    ratio = coverage(
        shares, 0.4, lambda x, s: bootstrap(lambda a, b: a.sum() / b.sum(), *x, resamples=300, seed=s), 120
    )
    assert ratio > 0.88


def test_summarise_known_table():
    table = pd.DataFrame(
        {
            "couple": [0, 0, 1, 1, 2, 2],
            "slot": [0, 1] * 3,
            "role": "clean",
            "probability": [1, 0, 1, 0.5, 1, 1],
        }
    )
    out = summarise(table, ["role", "slot"])
    assert list(out.columns) == ["role", "slot", "n", "probability", "low", "high"]
    assert out["probability"].tolist() == [1, 0.5] and out["n"].tolist() == [3, 3]
    assert out.loc[0, ["low", "high"]].tolist() == [1, 1]
    assert out.loc[1, "low"] < 0.5 < out.loc[1, "high"]
    assert summarise(table, ["slot"]).equals(summarise(table.sample(frac=1, random_state=0), ["slot"]))
    with pytest.raises(UserError, match="no rows"):
        summarise(table.iloc[:0], ["slot"])


def test_summarise_with_missing_cells_and_two_unit_columns():
    table = pd.DataFrame({"pair": [0, 1, 0], "setting": ["a", "a", "b"], "x": [1.0, 3.0, 5.0]})
    out = summarise(table, ["setting"], "x", unit=["setting", "pair"])
    assert out["x"].tolist() == [2, 5] and out["n"].tolist() == [2, 1]


def test_proportion_is_wilson():
    estimate = proportion(10, 10)
    assert estimate.value == 1 and estimate.high == 1 and 0.71 < estimate.low < 0.73
    middle = proportion(50, 100)
    assert np.allclose([middle.low, middle.high], [0.4038, 0.5962], atol=1e-3)
    with pytest.raises(UserError):
        proportion(3, 2)


def test_rank_p():
    assert rank_p(5, [1, 2, 3, 4]) == 0.2 and rank_p(0, [1, 2, 3, 4]) == 1.0
    assert rank_p(0, [1, 2, 3, 4], "less") == 0.2
    with pytest.raises(UserError):
        rank_p(0, [1], "sideways")


def test_ratio_is_the_bootstrap_of_a_quotient():
    rng = np.random.default_rng(1)
    above, below = rng.normal(1, 1, 60), rng.normal(2, 0.3, 60)
    units = np.repeat(np.arange(20), 3)
    fast = ratio(above, below, units)
    slow = bootstrap(lambda a, b: a.mean() / b.mean(), above, below, units=units)
    assert fast.n == slow.n == 20 and fast.value == pytest.approx(slow.value)
    assert abs(fast.low - slow.low) < 0.03 and abs(fast.high - slow.high) < 0.03
    for below in ([0, 0], [1e-7, -2e-7]):  # nothing but rounding
        none = ratio([1, 2], below)
        assert np.isnan([none.value, none.low, none.high]).all() and none.n == 2


def test_draws_that_are_not_finite_are_counted():
    above, below = [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]  # without the first unit the quotient is not finite: (2/3)^3
    with np.errstate(divide="ignore"):
        slow = bootstrap(lambda a, b: a.sum() / b.sum(), above, below)
    for found in (ratio(above, below), slow):
        assert found.value == 3 and np.isfinite([found.low, found.high]).all()
        assert found.left_out == pytest.approx(8 / 27, abs=0.04)
        assert re.search(r"n = 3; \d\d\.\d% of draws not finite", str(found))
        row = ledger.row("net_gain", found, "05_x", "c")
        assert row["left_out"] == pytest.approx(found.left_out) and "of draws" in ledger.table([row])["value"][0]
    assert ratio(above, [1.0, 1.0, 1.0]).left_out == 0


def test_without_a_finite_draw_there_is_no_interval():
    once = iter([1.0])
    found = bootstrap(lambda _: next(once, np.nan), [1, 2], resamples=5)
    assert found.value == 1 and np.isnan([found.low, found.high]).all() and found.left_out == 1
    assert ledger.row("net_gain", found, "05_x", "c")["verdict"] == "inconclusive"


def test_detectable_difference_is_found_in_four_cases_of_five():
    rng, found, width = np.random.default_rng(0), 0, []
    for _ in range(300):
        estimate = mean(rng.normal(0.28, 1.0, 100))
        found += estimate.low > 0
        width.append(detectable(estimate))
    assert abs(np.mean(width) - 0.28) < 0.02
    assert 0.7 < found / 300 < 0.9


def test_nothing_is_shown_as_minus_zero():
    assert (decimals(-0.004), decimals(-0.006), decimals(-0.0004, 3)) == ("0.00", "-0.01", "0.000")
    assert in_figures(-0.001, -0.02, -0.0) == "0.00 [-0.02, 0.00]" and in_figures(float("nan"), 0, 0) == "-"
    assert str(Estimate(-0.0001, -0.0012, 0.0, 80)) == "0.000 [-0.001, 0.000] (n = 80)"
