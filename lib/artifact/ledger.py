"""The claims of the paper, what is measured for each, and the rule that turns a value into a verdict (floor 4).

One rule for every row: with the 95 % interval of the metric wholly above its threshold the claim is *reproduced*,
wholly at or below it *not reproduced*, else *inconclusive*; so are fewer than five units. Metrics and thresholds stand
here, before any value is computed.
Effects are on the scale clean run = 0, counterfactual run = 1 of P(opposite) - P(target), unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lib import files, places
from lib.artifact import storage
from lib.errors import UserError

LEAST = 5  # units (pairs, entities, scenes): an interval from fewer says nothing


@dataclass(frozen=True)
class Measure:
    """What is measured for a claim. threshold: see the module's rule. paper: the paper's value, maybe in words."""

    claim: str
    metric: str
    threshold: float
    paper: str
    says: str

    @property
    def rule(self) -> str:
        return f"95 % interval above {self.threshold:g}"

    def verdict(self, low: float, high: float, n: int) -> str:
        if not low <= high:
            raise ValueError(f"{self.metric}: interval {low}..{high} is upside down or not a number")
        if n < LEAST:
            return "inconclusive"
        if low > self.threshold:
            return "reproduced"
        return "not reproduced" if high <= self.threshold else "inconclusive"


MEASURES = {
    measure.metric: measure
    for measure in (
        Measure("C1", "order_peak", 0.5, "about 1 in layers 20-22 of 28",
                "largest P(order) over slots when the last token is patched"),
        Measure("C1", "order_before_attribute", 0.0, "layers 20-22, then 23-27",
                "slot from which P(attribute) stays above 1/2, minus the slot where P(order) is largest"),
        Measure("C2", "probe_held_out", 0.8, ".90 - 1.00 (entities seen in training)",
                "accuracy of the ordinal probe on embeddings of object tokens, entities never seen by the probe"),
        Measure("C2", "probe_selectivity", 0.2, "not reported",
                "that accuracy minus the accuracy on the control task (random labels per entity, seen entities)"),
        Measure("C3", "strip_score", 0.5, "visible strips, no number",
                "share of the probe map's variance over background tokens explained by their strip"),
        Measure("C4", "strip_effect", 0.5, "flips (about 1)", "effect of exchanging whole strips at slot 0"),
        Measure("C4", "strip_minus_object", 0.25, "about 1",
                "that effect minus the effect of exchanging object tokens alone"),
        Measure("C5", "order_lost", 0.5, "most of it",
                "share of P(target) - P(opposite) that the ordering ablation removes"),
        Measure("C5", "order_left", 0.0, "some of it",
                "P(target) - P(opposite) after the ablation (0: nothing but chance between the two)"),
        Measure("C6", "backup_peak", 0.25, "flips in layers 11-20 of 28",
                "largest effect over slots of exchanging object tokens under the ablation, minus the effect at slot 0"),
        Measure("C7", "repaired_minus_random", 0.0, ".31 (Gemma-3-4b), .41 (Qwen2-VL-2B)",
                "share of failures repaired, the paper's accounting, minus the mean of random directions"),
        Measure("C7 net", "net_gain", 0.0, "not reported",
                "strict accuracy with cross-fitted alpha minus without enhancement, breakage counted"),
    )
}  # fmt: skip


def row(metric: str, value: float, low: float, high: float, n: int, notebook: str, cell: str, **where) -> dict:
    """One ledger row; `where` may add setting, direction or model. cell: the tag of the cell that made the value."""
    if metric not in MEASURES:
        raise UserError(
            f"No measure {metric!r} in lib/artifact/ledger.py: add it there, with its threshold, before computing it."
        )
    measure = MEASURES[metric]
    return {
        "claim": measure.claim,
        "metric": metric,
        **where,
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "n": int(n),
        "paper": measure.paper,
        "rule": measure.rule,
        "verdict": measure.verdict(low, high, n),
        "notebook": notebook,
        "cell": cell,
    }


def path(model: str):
    return places.outputs(model) / "ledger.json"


def load(model: str) -> list[dict]:
    """The rows of a model's ledger, [] when it has none yet."""
    return storage.read_json(path(model)) if path(model).exists() else []


def record(model: str, rows: list[dict], notebook: str, seed: int) -> pd.DataFrame:
    """Put a notebook's rows in place of its earlier ones in the model's ledger, in the order of the claims."""
    order = list(MEASURES)
    with files.locked(path(model)):  # notebooks of one model may run at the same time
        kept = [each for each in load(model) if each["notebook"] != notebook]
        merged = sorted(kept + rows, key=lambda each: (order.index(each["metric"]), each.get("setting", "")))
        storage.write_json(merged, path(model), storage.provenance(model, seed))
    return table(rows)


def table(rows: list[dict]) -> pd.DataFrame:
    """Rows for reading: claim, what was measured, value with interval, the paper's value, verdict."""
    return pd.DataFrame(
        {
            "claim": each["claim"],
            "measured": MEASURES[each["metric"]].says,
            "setting": each.get("setting", ""),
            "value": f"{each['value']:.2f} [{each['low']:.2f}, {each['high']:.2f}]",
            "n": each["n"],
            "paper": each["paper"],
            "rule": each["rule"],
            "verdict": each["verdict"],
        }
        for each in rows
    )
