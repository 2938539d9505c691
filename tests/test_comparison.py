"""A machine's runs held against the published record: all numbers, all verdicts, nothing that was asked otherwise."""

import numpy as np
import pandas as pd
import pytest
from records import file_run

from lib import places
from lib.analysis.statistics import Estimate
from lib.artifact import comparison, ledger, storage

NOTEBOOK = "02_x"


@pytest.fixture
def both(tmp_path, monkeypatch):
    """The same results at both places; returns a function that writes them with other values at one of them."""
    monkeypatch.setattr(places, "PUBLISHED", tmp_path / "outputs")
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "runs"))

    def write(place, value=0.9, accuracy=0.75, parameters=None, words="left", claim=True):
        found = Estimate(value, value - 0.1, value + 0.1, 50)
        row = ledger.row("strip_code", found, NOTEBOOK, "cell", setting="squares")
        table = pd.DataFrame({"direction": [words, "right"], "accuracy": [accuracy, np.nan], "n": [40, 1200]})

        def results(folder):
            ledger.record("reference", [row] if claim else [], NOTEBOOK, 0)
            storage.write_csv(table, folder / "tables/accuracy.csv", storage.provenance("reference", 0))

        file_run(tmp_path / place, "reference", NOTEBOOK, results, parameters or {"seed": 0})

    for place in ("outputs", "runs"):
        write(place)
    return write


def told():
    return comparison.report(comparison.compare("reference", NOTEBOOK))


def test_equal_results_agree(both):
    assert comparison.comparable("reference", NOTEBOOK)
    text, agree = told()
    assert agree and "all 7 values agree" in text  # value, low, high, verdict; three columns


def test_small_differences_are_allowed_and_told(both):
    both("runs", value=0.9004, accuracy=0.7501)
    text, agree = told()
    assert agree and "largest difference 0.0004" in text


@pytest.mark.parametrize(
    "changed, told_of",
    [
        ({"value": 0.93}, "strip_code, squares: value: 0.93, published 0.9"),
        ({"value": 0.55}, "verdict: inconclusive, published reproduced"),
        ({"accuracy": 0.77}, "tables/accuracy.csv, accuracy, row 0: 0.77, published 0.75"),
        ({"words": "above"}, "direction, row 0: above, published left"),
        ({"accuracy": np.nan}, "accuracy, row 0: nan, published 0.75"),
    ],
)
def test_differences_are_named(both, changed, told_of):
    both("runs", **changed)
    text, agree = told()
    assert not agree and told_of in text


def test_a_run_with_other_parameters_is_not_compared(both):
    both("runs", parameters={"seed": 1})
    assert not comparison.comparable("reference", NOTEBOOK)


def test_a_missing_claim_differs(both):
    both("runs", claim=False)
    text, agree = told()
    assert not agree and "strip_code, squares" in text


def test_a_damaged_published_table_differs(both):
    (places.PUBLISHED / "reference/tables/accuracy.csv").write_text("direction,accuracy\n")
    text, agree = told()
    assert not agree and "it is not what the run wrote" in text


def test_nothing_published_is_said(both):
    assert not comparison.comparable("reference", "03_other")
    assert "no comparison" in comparison.report(pd.DataFrame())[0]
