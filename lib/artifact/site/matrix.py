"""Verdicts as tables: claims by models, coloured and lettered; and all that was measured of one model."""

from collections import Counter

from lib.analysis import statistics
from lib.artifact import ledger

CLAIMS = {  # as in docs/RULES.md
    "C1": "the model first picks an ordinal position, then an attribute",
    "C2": "order is linearly decodable from the embeddings",
    "C3": "the order forms strips over the background",
    "C4": "the strip code is causal",
    "C5": "order from the vision encoder dominates",
    "C6": "the backbone makes a backup code on the objects' tokens",
    "C7": "amplifying the order directions repairs failures",
    "C7 net": "what the repairs of C7 cost",
}
LETTERS = {"reproduced": "R", "not reproduced": "N", "inconclusive": "I", "not testable": "T"}


def rows(ledgers: dict[str, list[dict]]) -> list[dict]:
    """A row per metric that some model has, a cell per model.

    ledgers: model -> rows of its ledger.
    """
    out = []
    for metric, measure in ledger.by_claim():
        cells = {model: [row for row in own if row["metric"] == metric] for model, own in ledgers.items()}
        if not any(cells.values()):
            continue
        known = {row["claim"] for row in out}
        out.append(
            {
                "claim": measure.claim,
                "sentence": "" if measure.claim in known else CLAIMS.get(measure.claim, ""),
                "metric": metric,
                "description": measure.description,
                "threshold": f"{measure.threshold:g}",
                "excludes": measure.excludes,
                "cells": [cell(model, found) for model, found in cells.items()],
            }
        )
    return out


def by_metric(rows: list[dict]) -> list[dict]:
    """One model's ledger, metric by metric: what is measured, the paper's value, and a line per place.

    rows: of one ledger. Each line has where, value (with its interval), n and verdict.
    """
    table, out = ledger.table(rows), []
    for metric, measure in ledger.by_claim():
        own = table[table["metric"] == metric] if rows else table
        if len(own):
            lines = own[["where", "value", "n", "verdict"]].to_dict("records")
            out.append({"claim": measure.claim, "metric": metric, "measure": measure, "lines": lines})
    return out


def cell(model: str, found: list[dict]) -> dict:
    """One metric of one model: a chip per verdict, values and intervals in short, and in full for who points at it."""
    counts = Counter(row["verdict"] for row in found)
    chips = [
        {"letter": letter, "verdict": verdict, "count": counts[verdict] if len(found) > 1 else ""}
        for verdict, letter in LETTERS.items()
        if verdict in counts
    ]
    full = [f"{ledger.where(row) or 'all'}: {ledger.in_figures(row)} {row['verdict']}" for row in found]
    value, interval = in_short(found)
    return {"model": model, "chips": chips, "value": value, "interval": interval, "full": "\n".join(full)}


def in_short(found: list[dict]) -> tuple[str, str]:
    """Value and interval; of several rows the least and the largest value, and the range that holds all intervals."""
    measured = [row for row in found if row["value"] is not None and row["low"] is not None]
    if not measured:
        return "", ""
    values = [row["value"] for row in measured]
    low, high = min(row["low"] for row in measured), max(row["high"] for row in measured)
    least, most, low, high = map(statistics.decimals, (min(values), max(values), low, high))
    return least if least == most else f"{least} to {most}", f"[{low}, {high}]"
