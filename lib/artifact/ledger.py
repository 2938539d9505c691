"""The claims of the paper, what is measured for each, and the rule that turns a value into a verdict (floor 4).

One rule for every metric: the claim is *reproduced* if the whole 95 % interval lies above the metric's threshold, *not
reproduced* if it lies at or below it, and *inconclusive* otherwise. With fewer units than the metric needs it is
*inconclusive*, or *not testable* where the rule says so; *not testable*, too, where fewer answers name a candidate than
the rule asks for. docs/RULES.md gives the rules in plain English, with their dates; docs/HISTORY.md keeps those of the
first round, which they replaced. Effects are on a scale from the clean run (0) to the counterfactual run (1) of
P(opposite) - P(target): the answers to the two pictures. P(order), P(attribute): probability of the entity at the place
that is asked for, of the answer that the counterfactual run gives (PROTOCOL.md 2). Edits are those of
lib/analysis/fingerprint.py, by number.

To add a claim: a `Measure` below, its row in docs/RULES.md (a test compares them), and `ledger.row` in the notebook
that measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib import files, places
from lib.analysis import statistics
from lib.analysis.statistics import Estimate
from lib.artifact import storage
from lib.errors import UserError

FILE = "ledger.json"
LEAST = 5  # units (pairs, entities, scenes): an interval from fewer says nothing
NAMED = 0.5  # C5: share of answers after a step of the ladder that must name a candidate


@dataclass(frozen=True)
class Measure:
    """What is measured for a claim.

    threshold: reproduced if the whole interval lies above it. paper: the paper's value, maybe in words. excludes: the
    rival explanation that predicts a value at or below the threshold. least: units that a verdict needs; too_few: the
    verdict with fewer. named: share of answers that must name one of the two candidates, or the model is confused and
    the metric *not testable*.
    """

    claim: str
    metric: str
    threshold: float
    paper: str
    description: str
    excludes: str = ""
    least: int = LEAST
    too_few: str = "inconclusive"
    named: float = 0.0

    @property
    def rule(self) -> str:
        condition = f", {self.named:.0%} of answers name a candidate" if self.named else ""
        return f"95 % interval above {self.threshold:g}{condition}"

    def verdict(self, low: float | None, high: float | None, n: int, named: float | None = None) -> str:
        """In one phrase; low and high are None where there was nothing to measure.

        named: the share of answers that name a candidate, None where nobody counted them.
        """
        if n < self.least:
            return self.too_few
        if self.named and (named is None or named < self.named):
            return "not testable"
        if low is None or high is None:
            return "inconclusive"
        if not low <= high:
            raise ValueError(f"{self.metric}: interval {low}..{high} is upside down or not a number")
        if low > self.threshold:
            return "reproduced"
        return "not reproduced" if high <= self.threshold else "inconclusive"


MEASURES = {
    measure.metric: measure
    for measure in (
        Measure("C1", "order_beyond_words", 0.25, "not measured; P(order) about 1 in layers 20-22 of 28",
                "largest P(order) over slots when the last token is patched, minus the same when the counterfactual "
                "question is asked about an empty canvas; mean of the two axes",
                "the words of the opposite question alone, which name the other end of the line without a picture"),
        Measure("C2", "probe_seen_entities", 0.8, ".90 - 1.00 (AdamW)",
                "accuracy of the exact logistic probe for ordinal place on object tokens, entities seen in training in "
                "other combinations",
                "embeddings in which the place in the line is not linearly readable"),
        Measure("C2", "probe_unseen_entities", 0.8, "not reported",
                "the same for entities that the probe never saw",
                "a table of how each known entity looks at each place, with no code in common"),
        Measure("C2", "probe_unseen_places", 0.8, "not reported",
                "the same for lines that stand where no line of the probe's training stood",
                "a code of the place on the canvas, which in centred lines agrees with the place in the line"),
        Measure("C3", "strips_beyond_bare", 0.25, "visible strips, no number",
                "strip score of the probe's map over background tokens, minus the score of the same probe's map of "
                "the picture without objects",
                "a code of the place on the canvas that is there without any object"),
        Measure("C3", "strips_unseen_beyond_bare", 0.25, "not reported",
                "the same for a probe that never saw the pictures' entities",
                "traces of particular entities in the background, which the probe has learned to look for"),
        Measure("C4", "strip_code", 0.5, "not measured (strips and objects exchanged: flips, no flip)",
                "effect of exchanging the outer strips' background within the clean picture at slot 0 (edit 9: S)",
                "object-local code (O), scene code in the background (B), token places (P): each predicts 0"),
        Measure("C4", "strip_code_lead", 0.0, "not measured",
                "S minus the largest of O, B and P (edits 9, 1, 5 and 8)",
                "a strip code that exists but is overruled by another source"),
        Measure("C5", "order_lost_named", 0.5, "most of it",
                "share of P(target) - P(opposite), among the probability of these two answers, that is gone on the "
                "ladder's last step (every object alone in the middle)",
                "damage by unusual tokens that sends answers to other words",
                named=NAMED),
        Measure("C5", "order_lost_own_place", 0.5, "not separated",
                "the same on the step before (every object alone at its own place)",
                "a code of an object's own place, which this step leaves untouched",
                named=NAMED),
        Measure("C5", "order_left_named", 0.0, "some of it",
                "P(target) - P(opposite), among the probability of these two answers, on the ladder's last step",
                "an encoder that is the only source of order: 0 exactly over mirrored pairs",
                named=NAMED),
        Measure("C6", "backup_beyond_floor", 0.5, "flips in layers 11-20 of 28",
                "largest effect over slots of object interchange (edit 1) with both runs ablated, minus the effect at "
                "slot 0",
                "pairs that were right by luck, half of which any disturbance turns over",
                least=20, too_few="not testable"),
        Measure("C6", "backup_on_objects", 0.25, "not measured",
                "largest excess over slots of that effect above the effect of moving the objects within the clean run "
                "(edit 7) at the same slot, both runs ablated",
                "an order still read from token places, and disturbance, which treats both edits alike",
                least=20, too_few="not testable"),
        Measure("C7", "repaired_beyond_random", 0.0, ".31 (Gemma-3-4b), .41 (Qwen2-VL-2B)",
                "share of failures repaired along the exact probe's directions, the paper's accounting, minus the mean "
                "of at least 20 random directions of the same effect size, scored on the same items",
                "any push of that size, which turns some wrong answers over by chance",
                least=300, too_few="not testable"),
        Measure("C7 net", "net_gain", 0.0, "not reported",
                "strict accuracy with cross-fitted alpha minus without enhancement, breakage counted",
                "repairs that are paid for with broken answers, and alpha chosen on the items it is scored on"),
        Measure("C7 net", "unrelated_kept", -0.05, "not reported",
                "accuracy on questions that are not about space at the "
                "cross-fitted alpha, minus without enhancement",
                "an enhancement that harms the picture as a whole"),
    )
}  # fmt: skip


def by_claim() -> list[tuple[str, Measure]]:
    """The metrics and what they measure, in the order of the claims."""
    return sorted(MEASURES.items(), key=lambda item: item[1].claim)


def row(metric: str, estimate: Estimate, notebook: str, cell: str, named: float | None = None, **where: str) -> dict:
    """One ledger row, its verdict that of the digits that are filed.

    cell: the tag of the cell that made the value. named: the share of answers that name a candidate, for a metric whose
    rule asks for it. where: `setting`, and `axis` (left-right or above-below) and `lines` (centred or shifted) for a
    metric that has a row for each.
    """
    value, low, high = (
        storage.significant(x) if np.isfinite(x) else None for x in (estimate.value, estimate.low, estimate.high)
    )
    if set(where) - {"setting", "axis", "lines"}:
        raise ValueError(f"a ledger row stands at a setting, an axis and lines, not at {', '.join(where)}")
    if metric not in MEASURES:
        raise UserError(
            f"No measure {metric!r} in lib/artifact/ledger.py: add it there, with its threshold, before it is computed."
        )
    measure = MEASURES[metric]
    return {
        "claim": measure.claim,
        "metric": metric,
        **where,
        "value": value,
        "low": low,
        "high": high,
        "n": int(estimate.n),
        "left_out": storage.significant(estimate.left_out),
        "paper": measure.paper,
        "rule": measure.rule,
        **({"named": storage.significant(named)} if measure.named and named is not None else {}),
        "verdict": measure.verdict(low, high, estimate.n, named),
        "notebook": notebook,
        "cell": cell,
    }


def in_figures(row: dict) -> str:
    """Value and interval of a row for readers, see `statistics.in_figures`."""
    return statistics.in_figures(row["value"], row["low"], row["high"])


def of_other_draws(row: dict) -> str:
    """What to say beside an interval from which draws of the bootstrap were left out; rows of older runs lack it."""
    return f", {row['left_out']:.1%} of draws not finite" if row.get("left_out") else ""


def where(row: dict) -> str:
    """Setting, axis and lines of a row in words."""
    return ", ".join(row[key] for key in ("setting", "axis", "lines") if row.get(key))


def place(row: dict) -> tuple[int, str]:
    """Sorts rows in the order of the claims."""
    order = list(MEASURES)
    known = row["metric"] in MEASURES
    return (order.index(row["metric"]) if known else len(order), where(row))


def record(model: str, rows: list[dict], notebook: str, seed: int) -> pd.DataFrame:
    """Leave a notebook's rows among its results, in place of rows it left before; returns them for reading.

    The runner puts them into the run's manifest; the ledger of a model is the rows of its manifests
    (lib/artifact/manifests.py).
    """
    path = places.outputs(model) / FILE
    with files.locked(path, notebook):  # notebooks run by hand share a folder and may run at the same time
        before = storage.read_json(path) if path.is_file() else []
        kept = [each for each in before if each["notebook"] != notebook]
        storage.write_json(sorted(kept + rows, key=place), path, storage.provenance(model, seed))
    return table(rows)


def table(rows: list[dict]) -> pd.DataFrame:
    """Rows for reading: claim, metric, where, value with interval, units, the paper's value, rule, verdict."""
    return pd.DataFrame(
        {
            "claim": each["claim"],
            "metric": each["metric"],
            "where": where(each),
            "value": in_figures(each) + of_other_draws(each),
            "n": each["n"],
            "paper": each["paper"],
            "rule": each["rule"],
            "verdict": each["verdict"],
        }
        for each in rows
    )
