"""Grids: the image tokens that a language model receives, and where entities stand on them (floor 1).

Every grid of the project is here. Image tokens are counted as (row, column), pixels as (x, y) from the top left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lib.errors import UserError, unknown

ORIENTATIONS = ("horizontal", "vertical")

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive


@dataclass(frozen=True)
class Grid:
    """The image tokens of a model family (as its language model receives them) and the line of three entities on them.

    side: tokens per row and column (N). pixels: pixels per token (P). entity: tokens per side of an entity (S).
    gap: tokens between neighbouring entities (g). strips: widths of the first, middle and last strip in tokens.
    fifth_colour: one of the six colours of squares and shapes. The values of the paper's models: PROTOCOL.md 1.
    """

    name: str
    side: int
    pixels: int
    entity: int
    gap: int
    strips: tuple[int, int, int]
    fifth_colour: str = "brown"

    @property
    def canvas(self) -> int:
        """Side of the square picture in pixels."""
        return self.side * self.pixels

    @property
    def starts(self) -> tuple[int, int, int]:
        """First token of each of the three places along a row or column (rounded down when not exact)."""
        first = (self.side - 3 * self.entity - 2 * self.gap) // 2
        return tuple(first + k * (self.entity + self.gap) for k in range(3))

    @property
    def across(self) -> int:
        """First token of the entities on the other axis."""
        return (self.side - self.entity) // 2

    def strip_range(self, place: int) -> range:
        """Token rows or columns of the strip of a place (0, 1, 2)."""
        first = sum(self.strips[:place])
        return range(first, first + self.strips[place])

    def first_token(self, place: int, orientation: str, shift: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """First token (row, column) of the entity at a place of a row ("horizontal") or column ("vertical").

        shift: displacement (rows, columns) of the whole line in tokens; off the grid is a UserError.
        """
        if orientation not in ORIENTATIONS:
            raise unknown("orientation", orientation, ORIENTATIONS)
        along, across = self.starts[place], self.across
        row, column = (across, along) if orientation == "horizontal" else (along, across)
        row, column = row + shift[0], column + shift[1]
        if not (0 <= row <= self.side - self.entity and 0 <= column <= self.side - self.entity):
            raise UserError(
                f"Shift {shift} pushes an entity off the {self.side} x {self.side} grid: use a smaller shift."
            )
        return row, column

    def resized(self, side: int, pixels: int) -> Grid:
        """The same grid with N x N tokens of P pixels, see `square_grid`."""
        if (side, pixels) == (self.side, self.pixels):
            return self
        return replace(square_grid(self.name, side, pixels), fifth_colour=self.fifth_colour)


def square_grid(name: str, side: int, pixels: int) -> Grid:
    """A grid of any size, filled by a line of three about as in the paper's models."""
    entity = max(1, side // 6)
    gap = min(entity, (side - 3 * entity) // 2)
    return Grid(name, side, pixels, entity, gap, (side // 3, side - 2 * (side // 3), side // 3))


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("reference", 12, 14, 2, 2, (4, 4, 4)),
        Grid("qwen2-vl", 12, 28, 2, 2, (4, 4, 4)),
        Grid("gemma-3", 16, 56, 3, 3, (5, 6, 5)),
        Grid("pixtral", 15, 16, 2, 2, (5, 5, 5), "orange"),  # it reads a thin brown cross as red
        Grid("llava-1.5", 24, 14, 4, 4, (8, 8, 8)),
        Grid("smolvlm", 9, 42, 1, 2, (3, 3, 3)),  # 27 whole patches of 14 in 384 pixels; the last 6 are never seen
        Grid("llava-onevision", 27, 14, 5, 4, (9, 9, 9)),  # 378 of 384 pixels, see smolvlm
        Grid("internvl3", 16, 28, 3, 3, (5, 6, 5)),
    )
}
