"""Pictures of objects with a transparent background: the eight of data/objects/, or a user's own (floor 1).

The eight were drawn by tools/draw_objects.py; here they are only read.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image

from lib.errors import UserError, unknown
from lib.places import OBJECTS

NAMES = ("orange", "apple", "pot", "bell", "hat", "rose", "key", "bomb")


@lru_cache(maxsize=64)
def load(name: str, folder: Path) -> Image.Image:
    """The picture <folder>/<name>.png as RGBA, 112 x 112 pixels.

    A picture that is not square is centred on a transparent square, so that it keeps its proportions. A missing or
    unreadable picture, or one without transparency, is a UserError.
    """
    path = folder / f"{name}.png"
    remedy = (
        "restore the folder data/objects from the repository"
        if folder == OBJECTS
        else "use a PNG with transparent background"
    )
    try:
        picture = Image.open(path)
        if not picture.has_transparency_data:
            raise UserError(f"{path} has no transparent background: save it as PNG with alpha.")
        picture = picture.convert("RGBA")
    except FileNotFoundError:
        if folder == OBJECTS and name not in NAMES:
            raise unknown("object", name, NAMES) from None
        raise UserError(f"There is no picture {path}: {remedy}.") from None
    except (OSError, SyntaxError, ValueError) as problem:
        raise UserError(f"{path} is not a readable picture ({problem}): {remedy}.") from None
    if picture.width != picture.height:
        side = max(picture.size)
        square = Image.new("RGBA", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    return picture.resize((112, 112), Image.Resampling.LANCZOS)
