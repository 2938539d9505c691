"""Intervals and null distributions (PROTOCOL.md 8.3 and 8.4; floor 1: numpy, scipy and pandas only).

The unit of resampling is the couple of pictures that a pair is about (or the item, or the image): all rows of a unit
are drawn together, never one by one.
Intervals are expanded percentile bootstrap intervals (Hesterberg 2015, "What teachers should know about the
bootstrap"): the percentiles are widened so that small samples keep their nominal coverage, which
tests/test_statistics.py measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from lib.errors import UserError

RESAMPLES, LEVEL = 2000, 0.95
ROUNDING = 1e-6  # a mean below it counts as 0: the rounding error of sums in float32


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and the count of units behind it.

    left_out: share of the bootstrap's draws in which the statistic was not finite; the interval is that of the others.
    """

    value: float
    low: float
    high: float
    n: int
    left_out: float = 0.0

    def __str__(self) -> str:
        more = f"; {self.left_out:.1%} of draws not finite" if self.left_out else ""
        return f"{in_figures(self.value, self.low, self.high, 3)} (n = {self.n}{more})"


def in_figures(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """A number and its interval in a few digits, never -0; a dash where there was nothing to measure."""
    if pd.isna(value):
        return "-"
    value, low, high = (decimals(x, digits) for x in (value, low, high))
    return f"{value} [{low}, {high}]"


def decimals(value: float, digits: int = 2) -> str:
    """A number with so many decimals, never -0.00."""
    return f"{value:z.{digits}f}"


def detectable(found: Estimate, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest true value of which an interval as wide as this one excludes 0 with a probability of `power`
    (normal approximation)."""
    reach = stats.norm.ppf((1 + level) / 2)
    return (found.high - found.low) / 2 * (1 + stats.norm.ppf(power) / reach)


def _percentiles(units: int, level: float) -> tuple[float, float]:
    """Lower and upper percentile (0..1) to read from a bootstrap distribution over so many units."""
    if units < 2:
        return 0.0, 1.0
    tail = stats.norm.cdf(np.sqrt(units / (units - 1)) * stats.t.ppf((1 - level) / 2, units - 1))
    return float(tail), float(1 - tail)


@lru_cache(maxsize=16)
def _weights(units: int, resamples: int, seed: int) -> np.ndarray:
    """How often each unit is drawn: [resample, unit], each row sums to the number of units."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples).astype(float)


def summarise(
    table: pd.DataFrame,
    by: Sequence[str],
    value: str = "probability",
    unit: str | Sequence[str] = "couple",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of a column with its interval in each cell of `by`: columns by, n (units), value, low, high.

    All cells share the same resamples of units, so that cells of one table can be compared.
    """
    by = list(by)
    if table.empty:
        raise UserError("nothing to summarise: the table has no rows")
    units = table.groupby(unit, sort=True, observed=True).ngroup().to_numpy()
    grouped = table.groupby(by, sort=True, observed=True, dropna=False)
    cells, count = grouped.ngroup().to_numpy(), grouped.ngroups
    values = table[value].to_numpy(dtype=float)
    shape = (units.max() + 1, count)
    sums, sizes = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (units, cells), values)
    np.add.at(sizes, (units, cells), 1)
    weights = _weights(shape[0], resamples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights @ sums) / (weights @ sizes)
    present = (sizes > 0).sum(0)
    bounds = [np.nanquantile(draws[:, k], _percentiles(int(n), level)) for k, n in enumerate(present)]
    keys = grouped.first().reset_index()[by] if len(table.columns) > len(by) else grouped.size().reset_index()[by]
    out = {
        "n": present,
        value: sums.sum(0) / sizes.sum(0),
        "low": [b[0] for b in bounds],
        "high": [b[1] for b in bounds],
    }
    return keys.assign(**out)


def mean(values, units=None, **options) -> Estimate:
    """Mean with its interval; values with the same entry in `units` are drawn together (default: each on its own)."""
    values = np.asarray(values, dtype=float)
    units = np.arange(len(values)) if units is None else np.asarray(units)
    table = pd.DataFrame({"all": 0, "unit": units, "value": values})
    row = summarise(table, ["all"], "value", "unit", **options).iloc[0]
    return Estimate(float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"]))


def bootstrap(
    statistic: Callable[..., float],
    *arrays,
    units=None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Any statistic of arrays whose rows are resampled together.

    Resamples in which it is not finite are left out, and the estimate says their share. Value and bounds are NaN if
    the statistic of all rows is not finite.
    """
    arrays = [np.asarray(array) for array in arrays]
    units = np.arange(len(arrays[0])) if units is None else np.unique(units, return_inverse=True)[1].ravel()
    members = [np.flatnonzero(units == k) for k in range(units.max() + 1)]
    value = float(statistic(*arrays))
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan, len(members))
    rng, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        draws.append(float(statistic(*(array[rows] for array in arrays))))
    return _of_draws(value, np.array(draws), len(members), level)


def ratio(above, below, units=None, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Mean of `above` over mean of `below`, rows of a unit drawn together; NaN if the mean of `below` is 0.

    The interval is that of `bootstrap` applied to the quotient of means, without its loop.
    """
    columns = [np.asarray(column, dtype=float) for column in (above, below)]
    units = np.arange(len(columns[0])) if units is None else np.unique(units, return_inverse=True)[1].ravel()
    sums = np.stack([np.bincount(units, column) for column in columns], axis=1)
    value = float(np.divide(*sums.sum(0))) if abs(columns[1].mean()) > ROUNDING else np.nan
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan, len(sums))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.divide(*(_weights(len(sums), resamples, seed) @ sums).T)
    return _of_draws(value, draws, len(sums), level)


def _of_draws(value: float, draws: np.ndarray, units: int, level: float) -> Estimate:
    """The percentile interval of the finite draws; NaN where there is none."""
    finite = draws[np.isfinite(draws)]
    bounds = np.quantile(finite, _percentiles(units, level)) if len(finite) else (np.nan, np.nan)
    return Estimate(value, float(bounds[0]), float(bounds[1]), units, 1 - len(finite) / len(draws))


def difference(first, second, **options) -> Estimate:
    """Mean of first - second, where row i of both is one unit; options as in `mean`."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise UserError("a paired difference needs two columns of one length")
    return mean(first - second, **options)


def proportion(successes: int, n: int, level: float = LEVEL) -> Estimate:
    """A share with Wilson's interval, which has a width at 0 and 1 where a bootstrap has none."""
    if not 0 <= successes <= n or n < 1:
        raise UserError(f"{successes} of {n} is not a share")
    bounds = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(bounds.low), float(bounds.high), n)


def rank_p(observed: float, null: Sequence[float], side: str = "greater") -> float:
    """p-value of an observed value against draws from its null distribution; side "greater" or "less".

    The observed value counts as one of the draws, so that p is never 0 (Phipson and Smyth 2010).
    """
    null = np.asarray(null, dtype=float)
    match side:
        case "greater":
            extreme = (null >= observed).sum()
        case "less":
            extreme = (null <= observed).sum()
        case _:
            raise UserError(f"side must be greater or less, not {side!r}")
    return float((1 + extreme) / (1 + len(null)))
