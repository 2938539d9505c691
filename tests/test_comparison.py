"""A machine's runs held against the published record: all numbers, all verdicts, nothing that was asked otherwise."""

import numpy as np
import pandas as pd
import pytest
from records import file_run

from lib import places
from lib.analysis.statistics import Estimate
from lib.artifact import comparison, ledger, manifests, storage, tolerances
from lib.artifact.manifests import Run

NOTEBOOK = "02_x"


@pytest.fixture
def both(tmp_path, monkeypatch):
    """The same results at both places; returns a function that writes them with other values at one of them."""
    monkeypatch.setattr(places, "PUBLISHED", tmp_path / "outputs")
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "runs"))

    def write(place, value=0.9, accuracy=0.75, parameters=None, words="left", claim=True, made=None):
        found = Estimate(value, value - 0.1, value + 0.1, 50)
        row = ledger.row("strip_code", found, NOTEBOOK, "cell", setting="squares")
        table = pd.DataFrame({"direction": [words, "right"], "accuracy": [accuracy, np.nan], "n": [40, 1200]})

        def results(folder):
            ledger.record("reference", [row] if claim else [], NOTEBOOK, 0)
            storage.write_csv(table, folder / "tables/accuracy.csv", storage.provenance("reference", 0))

        made_from = {"code": "digest", "cells": "digest", "weights": "digest"} | (made or {})
        file_run(tmp_path / place, "reference", NOTEBOOK, results, parameters or {"seed": 0}, made_from)

    for place in ("outputs", "runs"):
        write(place)
    return write


def told():
    return comparison.report(comparison.compare("reference", NOTEBOOK), {})


def test_equal_results_agree(both):
    assert comparison.why_not("reference", NOTEBOOK) == ""
    text, agree = told()
    assert agree and "all 7 values agree" in text  # value, low, high, verdict; three columns


def test_small_differences_are_allowed_and_told(both):
    both("runs", value=0.90004, accuracy=0.75001)
    text, agree = told()
    assert agree and "within 0.0001, largest difference 4e-05" in text


def test_the_tolerance_is_what_the_published_manifest_states(both, monkeypatch):
    both("runs", accuracy=0.76)
    assert not told()[1]
    wider = tolerances.Wider(("tables/accuracy.csv", "tables/none.csv"), ("accuracy",), 0.02, "counts of few")
    monkeypatch.setattr(tolerances, "WIDER", (wider,))
    assert not told()[1]  # what the code says now is no part of the record
    both("outputs")
    text, agree = told()
    assert agree and "1 within 0.02, largest difference 0.01" in text
    stated = manifests.read(Run(places.PUBLISHED, "reference", NOTEBOOK))["tolerance"]
    own = {"result": "tables/accuracy.csv", "of": ["accuracy"], "tolerance": 0.02, "why": "counts of few"}
    assert stated == {"default": tolerances.DEFAULT, "wider": [own]}
    both("runs", accuracy=0.76, words="above")
    assert not told()[1]  # words have no tolerance


def test_a_metric_of_the_ledger_may_have_a_tolerance_of_its_own(both, monkeypatch):
    wider = tolerances.Wider((tolerances.LEDGER,), ("strip_code", "net_gain"), 0.02, "counts of few")
    monkeypatch.setattr(tolerances, "WIDER", (wider,))
    both("outputs")
    both("runs", value=0.91)
    assert told()[1]
    both("runs", value=0.91, accuracy=0.76)
    assert not told()[1]
    assert manifests.read(Run(places.PUBLISHED, "reference", NOTEBOOK))["tolerance"]["wider"][0]["of"] == ["strip_code"]


def test_every_wider_tolerance_is_of_something_that_is_published_and_says_why():
    """Columns and metrics are those of the published record of the default model."""
    rows = {row["metric"] for row in manifests.ledger_rows(places.PUBLISHED, "reference")}
    for each in tolerances.WIDER:
        assert each.why and tolerances.DEFAULT < each.tolerance <= 0.05
        for result in each.results:
            file = places.PUBLISHED / "reference" / result
            known = rows if result == tolerances.LEDGER else set(pd.read_csv(file, nrows=0))
            assert set(each.of) & known, result


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


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"parameters": {"seed": 1}}, "it is published with other parameters"),
        ({"made": {"cells": "other"}}, "its cells changed since it was published"),
        ({"made": {"weights": "other"}}, "the model's weights changed since it was published"),
        ({"made": {"code": "other"}}, ""),  # that is what the comparison is for
    ],
)
def test_why_a_run_is_not_compared(both, changed, reason):
    both("runs", **changed)
    assert comparison.why_not("reference", NOTEBOOK) == reason


def test_a_missing_claim_differs(both):
    both("runs", claim=False)
    text, agree = told()
    assert not agree and "strip_code, squares" in text


def test_a_damaged_published_table_differs(both):
    (places.PUBLISHED / "reference/tables/accuracy.csv").write_text("direction,accuracy\n")
    text, agree = told()
    assert not agree and "it is not what the run wrote" in text


def test_what_is_not_compared_is_told_with_the_reason(both):
    assert comparison.why_not("reference", "03_other") == "it is not published"
    left_out = {"reference 03_other": "it is not published", "joint 03_other": "it is not published"}
    text, agree = comparison.report(pd.DataFrame(), left_out)
    assert agree
    assert text == "not compared with the published record: reference 03_other, joint 03_other (it is not published)"
