"""Identities that must hold before any result is shown: no-op patches and full patches (PROTOCOL.md 8.7; floor 3)."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from lib.errors import UserError


def largest_difference(table: pd.DataFrame, run: str, slots: Iterable[int]) -> float:
    """Largest |P(patched) - P(run)| over pairs and roles at the given slots of a sweep."""
    keys = ["pair", "role"]
    base = table[table["run"] == run].set_index(keys)["probability"]
    patched = table[(table["run"] == "patched") & table["slot"].isin(slots)].set_index(keys)["probability"]
    return float((patched - base.reindex(patched.index)).abs().max())


def check(differences: dict[str, float], tolerance: float = 1e-4) -> pd.DataFrame:
    """The differences as a table; a UserError that names the first one above the tolerance (or NaN)."""
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise UserError(
                f"Identity broken: {name} differs by {difference:.1e} (allowed {tolerance:.0e}); stop here."
            )
    return pd.DataFrame({"identity": list(differences), "largest difference": list(differences.values())})
