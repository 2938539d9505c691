"""How far a value may lie from the published one where another machine computes it; the one place that says so.

A difference is relative where the published value is larger than 1. The runner writes what applies to a run into its
manifest (lib/artifact/manifests.py), so that the tolerance stands in the record, with its reason where it is more than
`DEFAULT`; the comparison reads it there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

LEDGER = "ledger.json"
DEFAULT = 1e-4  # processors with and without AVX-512 were found to agree ten times closer


@dataclass(frozen=True)
class Wider:
    """A larger tolerance for some results, and why they need it.

    results: paths in a model's folder, `LEDGER` for the ledger. of: columns of these tables, or metrics of the ledger.
    """

    results: tuple[str, ...]
    of: tuple[str, ...]
    tolerance: float
    why: str


# Cells of `probes`, `strips` and `shift` were found up to .017 apart where another number of threads computed them; the
# published notebook 04, made again with one thread, agreed to 1e-5.
ADAMW = "200 steps of AdamW end elsewhere when the order of sums changes with the number of threads"
COUNTS = "an accuracy counts tokens, and some lie at the boundary between two places"
WIDER = (
    Wider(
        ("tables/probes.csv", "figures/03-probes-embeddings.csv", "figures/03-probes-slots.csv"),
        ("accuracy", "correct", "low", "high"),
        0.02,
        f"{ADAMW}; {COUNTS}",
    ),
    Wider((LEDGER,), ("probe_seen_entities", "probe_unseen_entities", "probe_unseen_places"), 0.02, COUNTS),
    Wider(
        ("tables/strips.csv", "figures/04-strip-score.csv", "figures/04-strip-score-photographs.csv"),
        ("score", "low", "high", "corrected", "null_mean", "p", "agreement", "agreement_low", "agreement_high"),
        0.02,
        ADAMW,
    ),
    Wider(
        ("tables/shift.csv", "figures/04-readings.csv", "figures/04-shifted-lines.csv"),
        ("value", "low", "high"),
        0.02,
        f"{ADAMW}; {COUNTS}",
    ),
    Wider(("figures/04-profiles.csv",), ("probability", "low", "high"), 0.02, ADAMW),
    Wider(("figures/04-maps.csv", "figures/04-maps-elsewhere.csv"), ("first", "middle", "last"), 0.02, ADAMW),
    Wider((LEDGER,), ("strips_beyond_bare", "strips_unseen_beyond_bare"), 0.02, ADAMW),
)


def of_run(results: Iterable[str], metrics: Iterable[str]) -> dict:
    """What a run's manifest states, from the paths of its results and the metrics of its ledger rows."""
    present, measured = set(results), set(metrics)
    wider = []
    for each in WIDER:
        for result in each.results:
            of = [name for name in each.of if result != LEDGER or name in measured]
            if of and (result in present or result == LEDGER):
                wider.append({"result": result, "of": of, "tolerance": each.tolerance, "why": each.why})
    return {"default": DEFAULT, "wider": wider}


def allowed(stated: dict, result: str, of: str) -> float:
    """How far a column of a table, or a metric of the ledger, may lie from its published value, as a manifest states
    it."""
    found = [each["tolerance"] for each in stated["wider"] if each["result"] == result and of in each["of"]]
    return max(found, default=stated["default"])
