"""The rules of the ledger: thresholds, too few units, and the rivals they exclude."""

import pytest

from lib import places
from lib.analysis.statistics import Estimate
from lib.artifact import ledger
from lib.artifact.verification import against_rules


@pytest.mark.parametrize("measure", ledger.MEASURES.values(), ids=lambda measure: measure.metric)
def test_a_rule_names_the_rival_it_excludes_and_stands_in_the_documents(measure):
    assert measure.excludes
    line = next(x for x in (places.ROOT / "docs/RULES.md").read_text("utf-8").split("\n") if f"`{measure.metric}`" in x)
    threshold = f"{measure.threshold:g}".replace("0.", ".")
    assert f"| {threshold} |" in line


def test_every_claim_has_a_rule():
    assert {measure.claim for measure in ledger.MEASURES.values()} >= {f"C{k}" for k in range(1, 8)}


def test_verdicts_follow_the_interval():
    rule = ledger.MEASURES["strip_code"]
    assert rule.verdict(0.51, 0.9, 50) == "reproduced"
    assert rule.verdict(0.1, 0.5, 50) == "not reproduced"
    assert rule.verdict(0.4, 0.6, 50) == rule.verdict(0.9, 1.0, 4) == "inconclusive"


def test_too_few_pairs_are_not_testable_even_without_an_interval():
    rule = ledger.MEASURES["backup_beyond_floor"]
    assert rule.verdict(0.9, 1.0, 19) == rule.verdict(float("nan"), float("nan"), 0) == "not testable"
    assert rule.verdict(0.9, 1.0, 20) == "reproduced"
    with pytest.raises(ValueError, match="upside down"):
        rule.verdict(float("nan"), float("nan"), 20)


def test_a_confused_model_gets_no_verdict_on_the_ablation():
    rule = ledger.MEASURES["order_lost_named"]
    assert rule.verdict(0.8, 0.9, 80, named=0.5) == "reproduced"
    assert rule.verdict(0.8, 0.9, 80, named=0.49) == rule.verdict(0.8, 0.9, 80) == "not testable"
    found = Estimate(0.9, 0.8, 0.95, 80)
    row = ledger.row("order_lost_named", found, "02_x", "ladder", named=0.18, setting="squares")
    assert row["verdict"] == "not testable" and row["named"] == 0.18 and not against_rules([row])
    assert against_rules([row | {"named": 0.9}]) and "named" not in ledger.row("strip_code", found, "02_x", "cell")
