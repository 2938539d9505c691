"""Grids: the image tokens that a language model sees, and where three entities stand on them (floor 1).

Every grid of the project is here. Image tokens are counted in (row, column), pixels in (x, y) from the top left.
"""

from __future__ import annotations

from dataclasses import dataclass

from lib.errors import UserError, unknown

ORIENTATIONS = ("horizontal", "vertical")

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive


@dataclass(frozen=True)
class Grid:
    """The LM-side grid of image tokens of one model family and the place of three entities on it.

    side: tokens per row and column (N). pixels: pixels per token (P). entity: tokens per entity side (S).
    gap: tokens between neighbouring entities (g). strips: widths of first, middle and last strip in tokens.
    Values: PROTOCOL.md 1.
    """

    name: str
    side: int
    pixels: int
    entity: int
    gap: int
    strips: tuple[int, int, int]

    @property
    def canvas(self) -> int:
        """Side of the square picture in pixels."""
        return self.side * self.pixels

    @property
    def starts(self) -> tuple[int, int, int]:
        """First token of each of the three slots along a row or column (rounded down when not exact)."""
        first = (self.side - 3 * self.entity - 2 * self.gap) // 2
        return tuple(first + k * (self.entity + self.gap) for k in range(3))

    @property
    def across(self) -> int:
        """First token of the entities on the other axis."""
        return (self.side - self.entity) // 2

    def strip_range(self, slot: int) -> range:
        """Token rows or columns of the strip of `slot` (0, 1, 2)."""
        first = sum(self.strips[:slot])
        return range(first, first + self.strips[slot])

    def place(self, slot: int, orientation: str, shift: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """First token (row, column) of the entity in `slot` of a row ("horizontal") or column ("vertical").

        shift: displacement (rows, columns) of the whole line in tokens; off the grid is a UserError.
        """
        if orientation not in ORIENTATIONS:
            raise unknown("orientation", orientation, ORIENTATIONS)
        along, across = self.starts[slot], self.across
        row, column = (across, along) if orientation == "horizontal" else (along, across)
        row, column = row + shift[0], column + shift[1]
        if not (0 <= row <= self.side - self.entity and 0 <= column <= self.side - self.entity):
            raise UserError(
                f"Shift {shift} pushes an entity off the {self.side} x {self.side} grid: use a smaller shift."
            )
        return row, column


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("reference", 12, 14, 2, 2, (4, 4, 4)),
        Grid("qwen2-vl", 12, 28, 2, 2, (4, 4, 4)),
        Grid("gemma-3", 16, 56, 3, 3, (5, 6, 5)),
        Grid("pixtral", 15, 16, 2, 2, (5, 5, 5)),
    )
}
