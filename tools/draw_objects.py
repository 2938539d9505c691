"""Eight object pictures with a transparent background, drawn by code.

Each object is one function that paints on a `Sketch` in units of 0..100 (x to the right, y down). `draw` centres the
result on a square and scales it down. `python -m tools.draw_objects` writes the stored copies in data/objects/; the
library only reads those.
"""

from collections.abc import Callable, Iterable, Sequence
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lib.places import OBJECTS

CANVAS = 896  # side of the sketch in pixels: four times the stored pictures
UNIT = CANVAS / 100
FILL = 0.94  # longer side of an object as a share of the picture's side

Colour = tuple[int, int, int]
Point = tuple[float, float]
Mask = Image.Image

INK = (38, 26, 24)
WHITE = (255, 255, 255)
LEAF = (62, 150, 58)
WOOD = (104, 66, 36)


# --- masks: which part of the sketch a stroke covers ------------------------------------------------------------------


def _mask() -> tuple[Mask, ImageDraw.ImageDraw]:
    mask = Image.new("L", (CANVAS, CANVAS))
    return mask, ImageDraw.Draw(mask)


def _pixels(points: Iterable[Point]) -> list[Point]:
    """Sketch units to pixels, rounded so that the last bit of a sine cannot move an edge."""
    return [(round(x * UNIT, 2), round(y * UNIT, 2)) for x, y in points]


def disc(x: float, y: float, rx: float, ry: float | None = None, turn: float = 0) -> Mask:
    """An ellipse around (x, y), turned clockwise by `turn` degrees."""
    ry, a = rx if ry is None else ry, turn * pi / 180
    ring = [(rx * cos(t), ry * sin(t)) for t in np.linspace(0, 2 * pi, 120, endpoint=False)]
    return polygon([(x + u * cos(a) - v * sin(a), y + u * sin(a) + v * cos(a)) for u, v in ring])


def polygon(points: Iterable[Point]) -> Mask:
    mask, pen = _mask()
    pen.polygon(_pixels(points), fill=255)
    return mask


def bend(points: Sequence[Point], closed: bool = False) -> list[Point]:
    """A smooth (Catmull-Rom) curve through `points`."""
    p = np.array([points[-1], *points, *points[:2]] if closed else [points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, 16)[:, None]
    pieces = [
        b + t * (c - a) / 2 + t**2 * (a - 2.5 * b + 2 * c - d / 2) + t**3 * (1.5 * (b - c) + (d - a) / 2)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return [tuple(q) for q in np.concatenate(pieces)]


def blob(*points: Point) -> Mask:
    """The inside of a smooth closed curve."""
    return polygon(bend(points, closed=True))


def stroke(points: Iterable[Point], width: float) -> Mask:
    """A line with round joints and ends."""
    mask, pen = _mask()
    path, r = _pixels(points), width * UNIT / 2
    pen.line(path, fill=255, width=round(2 * r))
    for x, y in path:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return mask


def mirror(mask: Mask) -> Mask:
    """`mask` and its left-right mirror image together."""
    return join(mask, mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def join(*masks: Mask) -> Mask:
    both = masks[0]
    for mask in masks[1:]:
        both = ImageChops.lighter(both, mask)
    return both


def cut(mask: Mask, hole: Mask) -> Mask:
    return ImageChops.subtract(mask, hole)


def within(mask: Mask, limit: Mask) -> Mask:
    return ImageChops.darker(mask, limit)


def grow(mask: Mask, width: float) -> Mask:
    """`mask` widened by `width`: a Gaussian edge falls to 16 % one sigma outside."""
    return mask.filter(ImageFilter.GaussianBlur(width * UNIT)).point(lambda v: 255 * (v > 40))


# --- paint ------------------------------------------------------------------------------------------------------------


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round(u + (v - u) * share) for u, v in zip(a, b, strict=True))


class Sketch:
    """A transparent canvas that masks are painted on, one over the other."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (CANVAS, CANVAS))

    def flat(self, mask: Mask, colour: Colour, outline: float = 0) -> None:
        """Paint `mask` in one colour, with an ink outline of the given width."""
        if outline:
            self.image.paste((*INK, 255), mask=grow(mask, outline))
        self.image.paste((*colour, 255), mask=mask)

    def round(self, mask: Mask, colour: Colour, lit: tuple[float, float, float], outline: float = 1.6) -> None:
        """Paint `mask` from light at (x, y) to dark at the distance `reach` from it, where lit = (x, y, reach)."""
        x, y, reach = lit
        down, across = np.mgrid[:CANVAS, :CANVAS] / UNIT
        far = np.hypot(across - x, down - y) / reach
        stops = zip(mix(colour, WHITE, 0.45), colour, mix(colour, INK, 0.35), strict=True)
        pixels = np.stack([np.interp(far, (0, 0.4, 1), stop) for stop in stops], axis=2)
        self.flat(mask, colour, outline)
        self.image.paste(Image.fromarray(pixels.round().astype(np.uint8)), mask=mask)


def leaf(s: Sketch, root: Point, tip: Point, width: float) -> None:
    """A pointed leaf with its midrib."""
    (x0, y0), (x1, y1) = root, tip
    side = (-(y1 - y0) * width, (x1 - x0) * width)

    def at(t: float, k: float) -> Point:
        return x0 + t * (x1 - x0) + k * side[0], y0 + t * (y1 - y0) + k * side[1]

    edge = [*bend([root, at(0.3, 0.9), at(0.65, 0.8), tip]), *bend([tip, at(0.65, -0.8), at(0.3, -0.9), root])]
    s.round(polygon(edge), LEAF, (*at(0.35, -0.5), 45))
    s.flat(stroke([at(0.1, 0), at(0.8, 0)], 1.4), mix(LEAF, INK, 0.5))


# --- the objects ------------------------------------------------------------------------------------------------------


def orange(s: Sketch) -> None:
    """A whole orange with a leaf, a cut half in front of it."""
    skin, pith, flesh = (250, 140, 12), (255, 238, 205), (255, 158, 30)
    s.round(disc(42, 47, 38), skin, (30, 32, 62))
    for k in range(26):
        a, r = k * 2.4, 6.6 * k**0.5
        s.flat(disc(42 + r * cos(a), 47 + r * sin(a), 0.9), mix(skin, INK, 0.25))
    leaf(s, (42, 15), (76, 14), 0.3)
    s.flat(disc(42, 13, 4, 3), mix(LEAF, INK, 0.5))
    x, y, r = 66, 67, 30
    s.flat(disc(x, y, r), skin, outline=1.8)
    s.flat(disc(x, y, r - 3.2), pith)
    s.flat(disc(x, y, r - 5.2), flesh)
    for k in range(8):
        a = (k + 0.5) * pi / 4
        s.flat(stroke([(x, y), (x + (r - 5) * cos(a), y + (r - 5) * sin(a))], 2.2), pith)
    s.flat(disc(x, y, 3), pith)


def apple(s: Sketch) -> None:
    """A red apple with stem and leaf."""
    body = blob((50, 32), (63, 25), (80, 27), (92, 42), (91, 62), (80, 83), (66, 95), (50, 91),
                (34, 95), (20, 83), (9, 62), (8, 42), (20, 27), (37, 25))
    s.round(body, (214, 28, 36), (30, 44, 78), outline=1.8)
    s.flat(within(disc(50, 29, 15, 6), body), (120, 10, 22))
    s.flat(stroke(bend([(50, 32), (50, 20), (45, 7)]), 6), WOOD, outline=1.2)
    leaf(s, (52, 19), (85, 6), 0.32)
    s.flat(disc(25, 46, 4.5, 10, turn=20), (255, 214, 208))


def pot(s: Sketch) -> None:
    """A blue cooking pot with lid and two handles."""
    steel, rim = (48, 112, 176), (196, 206, 216)
    s.flat(mirror(stroke(bend([(18, 50), (6, 51), (6, 65), (18, 66)]), 6.5)), INK)
    body = polygon([(14, 42), (86, 42), *bend([(86, 80), (82, 90), (72, 93)]), *bend([(28, 93), (18, 90), (14, 80)])])
    s.round(body, steel, (34, 56, 72))
    s.round(blob((10, 40), (22, 27), (50, 20), (78, 27), (90, 40), (50, 42)), steel, (38, 26, 60))
    s.flat(stroke([(11, 41), (89, 41)], 6.5), rim, outline=1.4)
    s.flat(join(disc(50, 11, 9, 6.5), stroke([(50, 12), (50, 19)], 7)), INK)


def bell(s: Sketch) -> None:
    """A golden bell with its loop and clapper."""
    gold = (246, 190, 30)
    s.flat(cut(disc(50, 12, 9), disc(50, 12, 4)), mix(gold, INK, 0.3), outline=1.6)
    s.round(disc(50, 86, 11), mix(gold, INK, 0.45), (46, 84, 22))
    side = bend([(50, 15), (66, 20), (75, 36), (78, 58), (84, 72), (93, 80)])
    body = polygon([*side, *[(100 - x, y) for x, y in reversed(side)]])
    s.round(body, gold, (38, 36, 66), outline=1.8)
    s.flat(stroke([(10, 80), (90, 80)], 9), mix(gold, INK, 0.12), outline=1.8)
    s.flat(within(stroke(bend([(20, 66), (50, 70), (80, 66)]), 2.4), body), mix(gold, INK, 0.5))
    s.flat(stroke(bend([(36, 58), (37, 42), (43, 28)]), 5), (255, 244, 190))


def hat(s: Sketch) -> None:
    """A brown hat with a wide brim and a red band."""
    felt = (150, 96, 48)
    brim = blob((3, 66), (14, 66), (50, 60), (86, 66), (97, 66), (88, 80), (50, 87), (12, 80))
    s.round(brim, felt, (40, 66, 90), outline=1.8)
    top = bend([(22, 62), (27, 30), (36, 16), (50, 22), (64, 16), (73, 30), (78, 62)])
    crown = polygon([(20, 72), *top, (80, 72), (50, 77)])
    s.round(crown, felt, (38, 28, 62), outline=1.8)
    s.flat(within(stroke(bend([(16, 62), (50, 68), (84, 62)]), 12), crown), (190, 30, 38))


def rose(s: Sketch) -> None:
    """A pink-red rose on a stem with two leaves."""
    pink = (226, 30, 92)
    s.flat(stroke(bend([(50, 50), (52, 74), (50, 94)]), 6), LEAF, outline=1.4)
    leaf(s, (51, 87), (88, 62), 0.28)
    leaf(s, (51, 90), (13, 66), 0.28)
    sides = [(50, 24, 26, 20, 0), (25, 34, 16, 24, -18), (75, 34, 16, 24, 18)]
    front = [(37, 47, 25, 16, 28), (63, 47, 25, 16, -28)]
    heart = [(50, 27, 19, 18, 0), (43, 36, 16, 12, 40), (58, 36, 16, 12, -40), (50, 26, 13, 11, 0)]
    for petal in (*sides, *front):
        s.round(disc(*petal), pink, (42, 20, 60))
    for petal in heart:
        s.round(disc(*petal), pink, (46, 16, 40))
    spiral = [(50 + 0.9 * t * cos(t), 26 + 0.75 * t * sin(t)) for t in np.linspace(1, 3.6 * pi, 60)]
    s.flat(stroke(spiral, 2), mix(pink, INK, 0.75))


def key(s: Sketch) -> None:
    """A steel key, bow at the upper left, teeth at the lower right."""
    steel = (150, 164, 180)

    def at(t: float, k: float) -> Point:  # t along the shaft from the bow's centre, k across it to the upper right
        return 27 + (t + k) * 0.7071, 27 + (t - k) * 0.7071

    bow = cut(disc(27, 27, 24), disc(*at(-3, 0), 10.5))
    shaft = stroke([at(22, 0), at(85, 0)], 14)
    teeth = [polygon([at(t, 0), at(t + 10, 0), at(t + 10, k), at(t, k)]) for t, k in ((48, 24), (71, 20))]
    whole = join(bow, shaft, *teeth)
    s.round(whole, steel, (20, 10, 110), outline=2.2)
    s.flat(within(stroke([at(24, -2), at(84, -2)], 2.4), whole), mix(steel, INK, 0.4))


def bomb(s: Sketch) -> None:
    """A black ball with a burning fuse."""
    iron = (44, 46, 56)
    s.flat(stroke(bend([(62, 32), (68, 18), (76, 12), (84, 16)]), 5), (196, 160, 104), outline=1.2)
    s.round(disc(44, 60, 36), iron, (30, 44, 60))
    s.round(polygon([(52, 24), (74, 36), (68, 47), (46, 35)]), iron, (56, 30, 40))
    s.flat(disc(29, 46, 6, 10, turn=40), (214, 218, 228))
    for r, colour in ((14, (240, 84, 24)), (8.5, (255, 222, 60))):
        tips = [(r if k % 2 else r / 2, k * pi / 8) for k in range(16)]
        s.flat(polygon([(85 + q * cos(a), 17 + q * sin(a)) for q, a in tips]), colour)


_DRAWERS: dict[str, Callable[[Sketch], None]] = {
    f.__name__: f for f in (orange, apple, pot, bell, hat, rose, key, bomb)
}


def sketch(name: str) -> Image.Image:
    """The object as its function paints it, on the large canvas."""
    s = Sketch()
    _DRAWERS[name](s)
    return s.image


def draw(name: str, pixels: int = 224) -> Image.Image:
    """The picture of `name`: RGBA, square, the object centred, its longer side FILL of the square."""
    large = sketch(name)
    left, top, right, bottom = large.getbbox()
    half = max(right - left, bottom - top) / FILL / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    square = large.crop(tuple(round(v) for v in (x - half, y - half, x + half, y + half)))
    picture = square.resize((pixels, pixels), Image.Resampling.LANCZOS)
    # A dropped last bit makes smaller files; snapped ends of alpha remove the filter's ringing.
    colour = [channel.point(lambda v: v | 1) for channel in picture.split()[:3]]
    alpha = picture.getchannel("A").point(lambda v: 0 if v < 16 else 255 if v > 239 else v)
    clear = Image.new("RGBA", picture.size)
    return Image.composite(Image.merge("RGBA", (*colour, alpha)), clear, alpha.point(lambda v: 255 * (v > 0)))


def write_all(folder: Path | str = OBJECTS) -> None:
    """Write every picture as <folder>/<name>.png."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _DRAWERS:
        draw(name).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    write_all()
