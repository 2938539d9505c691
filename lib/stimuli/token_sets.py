"""Sets of image tokens as index arrays (floor 1: numpy only).

Every set is an int64 array of flat indices r * N + c on the N x N grid of a family. Sets are in raster order, except
those of `interchange_regions`, which come in pairs whose k-th tokens belong together. The strips of a row of entities
("horizontal") are bands of columns, those of a column of entities ("vertical") bands of rows.
"""

from __future__ import annotations

import numpy as np

from lib.errors import UserError, unknown
from lib.stimuli.grids import ORIENTATIONS, Box, Grid

Tokens = np.ndarray  # int64 [token]

REGIONS = ("object", "strip", "background_strip", "middle", "random")  # of an interchange
PARTS = ("none", "random", "background", "object", "both")  # of an ablation


def block(grid: Grid, rows, columns) -> Tokens:
    """All tokens in the given rows and columns."""
    return np.add.outer(np.asarray(rows) * grid.side, np.asarray(columns)).ravel().astype(np.int64)


def object_tokens(grid: Grid, orientation: str, place: int, shift: tuple[int, int] = (0, 0)) -> Tokens:
    """The S*S tokens of the entity at a place (0, 1, 2) of a line, as `line_scene` draws it."""
    row, column = grid.first_token(place, orientation, shift)
    return block(grid, np.arange(row, row + grid.entity), np.arange(column, column + grid.entity))


def strip_tokens(grid: Grid, orientation: str, place: int, width: int | None = None) -> Tokens:
    """The strip of a place over the whole canvas: width * N tokens; without `width` the family's own strip.

    A narrower strip (the dose of PROTOCOL.md 8.6) keeps the columns (rows) whose centres are nearest to the object's
    centre; of two equally near the one towards the canvas edge. It therefore always contains the object, widths are
    nested, and first and last strip mirror each other wherever the objects do. A width below that of the object or
    above that of the strip is a UserError.
    """
    band = np.array(grid.strip_range(place))
    if width is not None:
        if not grid.entity <= width <= len(band):
            raise UserError(
                f"A strip of width {width} is not possible on the {grid.name} grid: place {place} takes widths "
                f"{grid.entity} to {len(band)}."
            )
        centre = grid.starts[place] + (grid.entity - 1) / 2
        outwards = band if place < 2 else -band
        band = np.sort(band[np.lexsort((outwards, np.abs(band - centre)))[:width]])
    everywhere = np.arange(grid.side)
    if orientation == "horizontal":
        return block(grid, everywhere, band)
    if orientation == "vertical":
        return block(grid, band, everywhere)
    raise unknown("orientation", orientation, ORIENTATIONS)


def background_strip(grid: Grid, orientation: str, place: int, width: int | None = None) -> Tokens:
    """The strip of a place without its object."""
    return np.setdiff1d(strip_tokens(grid, orientation, place, width), object_tokens(grid, orientation, place))


def background(grid: Grid, orientation: str, shift: tuple[int, int] = (0, 0)) -> Tokens:
    """Everything outside the three objects."""
    objects = [object_tokens(grid, orientation, place, shift) for place in range(3)]
    return np.setdiff1d(np.arange(grid.side**2), np.concatenate(objects))


def random_background(grid: Grid, orientation: str, count: int, rng: np.random.Generator) -> Tokens:
    """`count` different background tokens drawn anywhere on the canvas."""
    pool = background(grid, orientation)
    if count > len(pool):
        raise UserError(f"{count} background tokens were asked for, the {grid.name} grid has {len(pool)}.")
    return np.sort(rng.choice(pool, count, replace=False))


def interchange_regions(
    grid: Grid,
    orientation: str,
    region: str,
    width: int | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Tokens, Tokens]:
    """Two aligned regions to interchange, of place 0 and place 2: their k-th tokens belong together.

    object: the objects, in raster order. strip: the object, then the rest of the strip, each in raster order, so that
    object falls on object on grids where it stands at different offsets within the two outer strips (Gemma-3,
    Pixtral). background_strip: the same without the object. middle: the middle strip twice (its tokens stay in place, a
    control). random: two disjoint random sets of background tokens, as many as background_strip has; needs `rng`.
    width: of strips, see `strip_tokens`.
    """
    objects = [object_tokens(grid, orientation, place) for place in (0, 2)]
    rests = [background_strip(grid, orientation, place, width) for place in (0, 2)]
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


def box_tokens(box: Box, grid: Grid, size: tuple[int, int] | None = None) -> Tokens:
    """The tokens of an object that need not lie on the grid, from its box.

    Every token of which the box covers at least half the area, and always the token at the centre of the box, so that
    no box is without tokens. box: (x0, y0, x1, y1) in pixels of a picture of `size` (width, height) that is resized to
    the square canvas as `image(canvas)` does; without size, in pixels of the canvas itself.
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


def part_tokens(grid: Grid, orientation: str, part: str, rng: np.random.Generator | None = None) -> Tokens:
    """The tokens that a partial ablation replaces; random: as many background tokens as there are object tokens.

    An unknown part is a UserError.
    """
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
