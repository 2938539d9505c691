"""What the value of a notebook's parameter must be, read from the comment beside it: the one declaration.

The comment ends with one of `[at least 1]`, `[1 to 15]`, `[one of is_the, reference_point]`, `[a folder]`. For a list
the bounds hold for every entry, and a list has at least one entry and none twice. Words may also be empty.
"""

import ast
import math
import re
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError


@dataclass(frozen=True)
class Bounds:
    """Numbers from low to high, or words among `words`, or an existing folder."""

    low: float = -math.inf
    high: float = math.inf
    words: tuple[str, ...] = ()
    folder: bool = False

    def why_not(self, value) -> str:
        """Why a value is out of bounds; empty where it is not."""
        if isinstance(value, (list, tuple)):
            return next((why for entry in value if (why := self.why_not(entry))), "")
        if isinstance(value, str):
            if self.words and value not in ("", *self.words):
                return f"it must be one of {', '.join(self.words)}, or empty"
            return f"there is no folder {value}" if self.folder and value and not Path(value).is_dir() else ""
        if self.low <= value <= self.high:
            return ""
        return f"it must be at least {self.low:g}" + ("" if math.isinf(self.high) else f" and at most {self.high:g}")


def parse_bounds(comment: str) -> Bounds | None:
    """The bounds at the end of a comment; None where there are none."""
    if found := re.search(r"\[at least (-?[\d.]+)\]$", comment):
        return Bounds(low=float(found[1]))
    if found := re.search(r"\[(-?[\d.]+) to (-?[\d.]+)\]$", comment):
        return Bounds(float(found[1]), float(found[2]))
    if found := re.search(r"\[one of ([^\]]+)\]$", comment):
        return Bounds(words=tuple(word.strip() for word in found[1].split(",")))
    return Bounds(folder=True) if comment.endswith("[a folder]") else None


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
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            raise wrong
        entries = [like(default[0], entry) for entry in value] if default else list(value)
        if not entries or any(entries.count(entry) > 1 for entry in entries):
            raise UserError(f"a list like {default!r} is needed there, at least one entry and none twice")
        return type(default)(entries)
    if isinstance(default, float) and type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        raise wrong
    if isinstance(value, str) and (len(value) > 1000 or not value.isprintable()):
        raise UserError("at most 1000 printable characters are allowed there")
    return value
