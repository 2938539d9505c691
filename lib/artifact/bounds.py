"""What the value of a notebook's parameter must be: the one declaration, checked before any notebook starts.

A value is of the kind of the default. Whole numbers are counts, at least 1, and `seed` is at least 0; decimal numbers
are finite; a list has at least one entry and none twice, each of the kind of the default's entries. Where a parameter
needs other bounds, the comment beside it in the notebook ends with `[at least 2]`, `[1 to 15]` or
`[one of is_the, reference_point]`.
"""

import ast
import math
import re
from dataclasses import dataclass

from lib.errors import UserError

LONGEST = 1000  # characters of a word


@dataclass(frozen=True)
class Bounds:
    """Numbers from low to high, or one of `words` (any where there are none; "" always)."""

    low: float = -math.inf
    high: float = math.inf
    words: tuple[str, ...] = ()

    def why_not(self, value) -> str:
        """Why a value is out of bounds; empty where it is not."""
        if isinstance(value, (list, tuple)):
            return next((why for entry in value if (why := self.why_not(entry))), "")
        if isinstance(value, str):
            good = not self.words or value in ("", *self.words)
            return "" if good else f"it must be one of {', '.join(self.words)}, or empty"
        if value is None or isinstance(value, bool) or self.low <= value <= self.high:
            return ""
        return f"it must be at least {self.low:g}" + ("" if math.isinf(self.high) else f" and at most {self.high:g}")


def bounds_of(name: str, default, comment: str) -> Bounds:
    """The bounds of a parameter: from its comment, else by its name and the kind of its default."""
    if found := re.search(r"\[at least (-?[\d.]+)\]$", comment):
        return Bounds(low=float(found[1]))
    if found := re.search(r"\[(-?[\d.]+) to (-?[\d.]+)\]$", comment):
        return Bounds(float(found[1]), float(found[2]))
    if found := re.search(r"\[one of ([^\]]+)\]$", comment):
        return Bounds(words=tuple(word.strip() for word in found[1].split(",")))
    if type(default) is int:
        return Bounds(low=0 if name == "seed" else 1)
    return Bounds()


def read_value(text: str, default, bounds: Bounds | None = None):
    """`text` as a value of the same kind as `default` and within the bounds; UserError where that cannot be."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "null": None}.get(text, text)
    if isinstance(default, str) and not isinstance(value, str):
        value = text  # -p name=12 means the word "12" where a word is wanted
    value = like(default, value)
    if bounds and (why := bounds.why_not(value)):
        raise UserError(why)
    return value


def like(default, value):
    """`value` as the same kind of thing as `default`; UserError where that cannot be."""
    wrong = UserError(f"a value like {default!r} is needed there ({type(default).__name__})")
    if default is None:
        return value
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            raise wrong
        return type(default)(entries_like(default, list(value)))
    if isinstance(default, float) and type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        raise wrong
    if isinstance(value, str) and (len(value) > LONGEST or not value.isprintable()):
        raise UserError(f"at most {LONGEST} printable characters are allowed there")
    return value


def entries_like(default, entries: list) -> list:
    """The entries of a list; numbers may be whole or decimal where the default's are numbers of either kind."""
    wrong = UserError(f"a list like {default!r} is needed there, at least one entry and none twice")
    if not entries or any(entries.count(entry) > 1 for entry in entries):
        raise wrong
    numbers = bool(default) and all(type(entry) in (int, float) for entry in default)
    for entry in entries:
        fits = type(entry) in (int, float) if numbers else not default or type(entry) is type(default[0])
        if not fits or (isinstance(entry, float) and not math.isfinite(entry)):
            raise wrong
    return entries
