"""Sets of image tokens as index arrays (floor 1: numpy only).

Every set is an int64 array of flat indices r * N + c on the N x N grid of a family. Sets are in raster order,
except the regions of `exchange`, which come in twos whose k-th tokens belong together. A row of entities
("horizontal") has strips that are bands of columns, a column of entities ("vertical") strips that are bands
of rows.
"""

from __future__ import annotations

import numpy as np

from lib.errors import UserError, unknown
from lib.stimuli.grids import ORIENTATIONS, Box, Grid

Tokens = np.ndarray  # int64 [token]

REGIONS = ("object", "strip", "background_strip", "middle", "random")


def block(grid: Grid, rows, columns) -> Tokens:
    """All tokens in the given rows and columns."""
    return np.add.outer(np.asarray(rows) * grid.side, np.asarray(columns)).ravel().astype(np.int64)


def object_tokens(grid: Grid, orientation: str, slot: int, shift: tuple[int, int] = (0, 0)) -> Tokens:
    """The S*S tokens of the entity in a slot (0, 1, 2), as `line_scene` places it."""
    row, column = grid.place(slot, orientation, shift)
    return block(grid, np.arange(row, row + grid.entity), np.arange(column, column + grid.entity))


def strip_tokens(grid: Grid, orientation: str, slot: int, width: int | None = None) -> Tokens:
    """The strip of a slot over the whole canvas: width * N tokens; without `width` the family's own strip.

    A narrower strip (the dose of PROTOCOL.md 8) keeps the columns (rows) of the strip whose centres are
    nearest to the object's centre; of two equally near the one towards the canvas edge. So it always holds
    the object, widths are nested, and first and last strip mirror each other wherever the objects do. Widths
    below the object's own side or above the strip's are a UserError.
    """
    band = np.array(grid.strip_range(slot))
    if width is not None:
        if not grid.entity <= width <= len(band):
            raise UserError(
                f"A strip of width {width} is not possible on the {grid.name} grid: slot {slot} takes widths "
                f"{grid.entity} to {len(band)}."
            )
        centre = grid.starts[slot] + (grid.entity - 1) / 2
        outwards = band if slot < 2 else -band
        band = np.sort(band[np.lexsort((outwards, np.abs(band - centre)))[:width]])
    everywhere = np.arange(grid.side)
    if orientation == "horizontal":
        return block(grid, everywhere, band)
    if orientation == "vertical":
        return block(grid, band, everywhere)
    raise unknown("orientation", orientation, ORIENTATIONS)


def background_strip(grid: Grid, orientation: str, slot: int, width: int | None = None) -> Tokens:
    """The strip of a slot without its object."""
    return np.setdiff1d(strip_tokens(grid, orientation, slot, width), object_tokens(grid, orientation, slot))


def background(grid: Grid, orientation: str, shift: tuple[int, int] = (0, 0)) -> Tokens:
    """Everything outside the three objects."""
    objects = [object_tokens(grid, orientation, slot, shift) for slot in range(3)]
    return np.setdiff1d(np.arange(grid.side**2), np.concatenate(objects))


def random_background(grid: Grid, orientation: str, count: int, rng: np.random.Generator) -> Tokens:
    """`count` different background tokens drawn anywhere on the canvas."""
    pool = background(grid, orientation)
    if count > len(pool):
        raise UserError(f"{count} background tokens were asked for, the {grid.name} grid has {len(pool)}.")
    return np.sort(rng.choice(pool, count, replace=False))


def exchange(
    grid: Grid,
    orientation: str,
    region: str,
    width: int | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Tokens, Tokens]:
    """Two aligned regions to exchange, of slot 0 and slot 2: their k-th tokens take each other's place.

    object: the objects, raster order. strip: object first, then the rest of the strip, each in raster order -
    on grids where the object stands at different offsets within the two outer strips (Gemma-3, Pixtral) this
    keeps object on object. background_strip: the same without the object. middle: the middle strip twice (its
    tokens stay in place, a control). random: two disjoint random sets of background tokens, as many as
    background_strip has; needs `rng`. width: of strips, see `strip_tokens`.
    """
    objects = [object_tokens(grid, orientation, slot) for slot in (0, 2)]
    rests = [background_strip(grid, orientation, slot, width) for slot in (0, 2)]
    match region:
        case "object":
            return tuple(objects)
        case "strip":
            return tuple(np.concatenate(pair) for pair in zip(objects, rests, strict=True))
        case "background_strip":
            return tuple(rests)
        case "middle":
            middle = strip_tokens(grid, orientation, 1, width)
            return middle, middle.copy()
        case "random":
            if rng is None:
                raise UserError("The region random needs a generator: pass rng=np.random.default_rng(seed).")
            drawn = rng.permutation(random_background(grid, orientation, 2 * len(rests[0]), rng))
            first, last = drawn.reshape(2, -1)
            return first, last
    raise unknown("region", region, REGIONS)


def mirrored(grid: Grid, orientation: str, tokens: Tokens) -> Tokens:
    """The tokens on the other side of the canvas along the axis, token by token."""
    row, column = np.divmod(np.asarray(tokens), grid.side)
    last = grid.side - 1
    row, column = (row, last - column) if orientation == "horizontal" else (last - row, column)
    return row * grid.side + column


def box_tokens(box: Box, grid: Grid, size: tuple[int, int] | None = None) -> Tokens:
    """The tokens of a thing that need not lie on the grid.

    Rule: every token of which the box covers at least half the area, and always the token that holds the
    box's centre, so that no box is without tokens. box: (x0, y0, x1, y1) in pixels of a picture of `size`
    (width, height), which is squeezed to the square canvas as `image(canvas)` does; without size, in pixels
    of the canvas itself.
    """
    width, height = size or (grid.canvas, grid.canvas)
    x0, x1 = (x * grid.side / width for x in (box[0], box[2]))  # in tokens
    y0, y1 = (y * grid.side / height for y in (box[1], box[3]))
    start = np.arange(grid.side)
    across = np.clip(np.minimum(start + 1, x1) - np.maximum(start, x0), 0, None)
    along = np.clip(np.minimum(start + 1, y1) - np.maximum(start, y0), 0, None)
    covered = np.outer(along, across) >= 0.5 - 1e-9  # exactly half counts, whatever it rounds to
    row, column = (int(np.clip((a + b) / 2, 0, grid.side - 1)) for a, b in ((y0, y1), (x0, x1)))
    covered[row, column] = True
    return np.flatnonzero(covered)


PARTS = ("none", "random", "background", "object", "both")


def part_tokens(grid: Grid, orientation: str, part: str, rng: np.random.Generator | None = None) -> Tokens:
    """The tokens that a partial ablation replaces; random: as many background tokens as there are object tokens."""
    match part:
        case "none":
            return np.array([], dtype=np.int64)
        case "random":
            return random_background(grid, orientation, 3 * grid.entity**2, rng or np.random.default_rng(0))
        case "background":
            return background(grid, orientation)
        case "object":
            return np.setdiff1d(np.arange(grid.side**2), background(grid, orientation))
        case "both":
            return np.arange(grid.side**2)
    raise unknown("part", part, PARTS)
