"""Scenes: entities on a canvas, and the pictures drawn from them (floor 1: numpy and Pillow only).

A scene is data (entities, boxes in pixels, a backdrop), and `render` turns it into a picture; the same scene always
gives the same pixels. Coordinates are (x, y) in pixels from the top left; image tokens are (row, column).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lib.errors import UserError, unknown
from lib.places import OBJECTS
from lib.stimuli import object_pictures
from lib.stimuli.grids import Box, Grid

# --- entities -------------------------------------------------------------------------------------------------

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "brown": (150, 75, 0),
    "gray": (128, 128, 128),
    "orange": (255, 165, 0),
}

SHAPES = ("square", "circle", "triangle", "star", "cross", "heart")

OBJECT_NAMES = object_pictures.NAMES


@dataclass(frozen=True)
class Entity:
    """A thing in a scene: a coloured shape (colour given) or an object picture (colour None).

    folder: where <noun>.png of an object lies; None for the project's own pictures.
    """

    noun: str
    colour: str | None = None
    folder: str | None = None

    @property
    def name(self) -> str:
        """The candidate answer for this entity: its colour, or the object's name."""
        return self.colour or self.noun

    def __str__(self) -> str:
        return f"{self.colour} {self.noun}" if self.colour else self.noun


def palette(grid: Grid) -> tuple[str, ...]:
    """The six colours of squares and shapes on a grid."""
    return ("red", "green", "blue", "black", grid.fifth_colour, "gray")


def entities(setting: str, grid: Grid, objects: str | Path | None = None) -> tuple[Entity, ...]:
    """The entities of a setting: squares (6), shapes (6, each with one colour) or objects (8).

    objects: a folder of other pictures for the setting `objects`, see `objects_in_folder`.
    """
    match setting:
        case "squares":
            return tuple(Entity("square", colour) for colour in palette(grid))
        case "shapes":
            return tuple(Entity(shape, colour) for shape, colour in zip(SHAPES, palette(grid), strict=True))
        case "objects":
            return objects_in_folder(objects) if objects else tuple(Entity(name) for name in OBJECT_NAMES)
    raise UserError(f"Unknown setting {setting!r}: choose squares, shapes or objects.")


def objects_in_folder(folder: str | Path) -> tuple[Entity, ...]:
    """One entity per PNG of a folder, in alphabetical order; the file's name is the object's name.

    Every picture is opened here, so that a bad one (unreadable, without transparency) is a UserError now and not in
    the middle of a run. Last-token pairs need at least five pictures.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"No folder {folder}: name a folder with one PNG per object.")
    names = sorted(path.stem for path in folder.glob("*.png"))
    if len(names) < 5:
        raise UserError(f"{folder} holds {len(names)} PNG pictures: at least 5 objects are needed.")
    for name in names:
        object_pictures.load(name, folder)
    return tuple(Entity(name, folder=str(folder)) for name in names)


def ordered_triples(setting: str, grid: Grid, objects: str | Path | None = None) -> list[tuple[Entity, Entity, Entity]]:
    """All ordered triples of distinct entities: 120 for squares and shapes, 336 for objects."""
    return list(permutations(entities(setting, grid, objects), 3))


# --- scenes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """One entity and its box in pixels; `turn` is a rotation in degrees, counter-clockwise."""

    entity: Entity
    box: Box
    turn: float = 0.0

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Backdrop:
    """A square cut-out of a photograph."""

    photograph: str
    left: float = 0.0  # its offset as a fraction of the largest possible one, 0 to 1
    top: float = 0.0
    part: float = 1.0  # its side as a fraction of the shorter edge of the photograph
    mirrored: bool = False


@dataclass(frozen=True)
class Finish:
    """What makes a picture look less like a drawing: uneven light, contrast, sensor noise, clutter."""

    light: float = 0.0  # strength of a linear gradient, 0 = even light, .5 = half as bright at the far side
    direction: float = 0.0  # degrees, where the light comes from
    contrast: float = 1.0
    noise: float = 0.0  # standard deviation in grey levels
    clutter: int = 0  # number of small distracting blobs and sticks under the objects
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """What is in a picture. canvas: side in pixels; later placements cover earlier ones."""

    canvas: int
    placements: tuple[Placement, ...] = ()
    backdrop: Backdrop | None = None
    finish: Finish | None = None

    def image(self, canvas: int) -> Image.Image:
        """The picture on a canvas of this side in pixels (the method that `questions.Picture` asks for)."""
        return render(self if canvas == self.canvas else resized(self, canvas))


def token_box(row: int, column: int, size: int, grid: Grid) -> Box:
    """Pixel box of a size x size block of image tokens whose first token is (row, column)."""
    p = grid.pixels
    return (column * p, row * p, (column + size) * p, (row + size) * p)


def line_scene(
    triple: tuple[Entity | None, ...],
    grid: Grid,
    orientation: str,
    shift: tuple[int, int] = (0, 0),
    backdrop: Backdrop | None = None,
) -> Scene:
    """Three entities in a centred row ("horizontal") or column ("vertical").

    None leaves a place empty: (None, e, None) shows e alone in the middle, (None,) * 3 is the empty canvas.
    shift: whole-scene displacement (rows, columns) in tokens.
    """
    corners = [grid.first_token(place, orientation, shift) for place in range(3)]
    placements = tuple(
        Placement(entity, token_box(*corner, grid.entity, grid))
        for entity, corner in zip(triple, corners, strict=True)
        if entity is not None
    )
    return Scene(grid.canvas, placements, backdrop)


def lattice_scene(table: tuple[tuple[Entity | None, ...], ...], grid: Grid, backdrop: Backdrop | None = None) -> Scene:
    """Entities in a centred 2x2 or 3x3 lattice, row by row, `gap` tokens apart; None leaves a place empty."""
    n = len(table)
    first = (grid.side - n * grid.entity - (n - 1) * grid.gap) // 2
    step = grid.entity + grid.gap
    return Scene(
        grid.canvas,
        tuple(
            Placement(entity, token_box(first + r * step, first + c * step, grid.entity, grid))
            for r, line in enumerate(table)
            for c, entity in enumerate(line)
            if entity is not None
        ),
        backdrop,
    )


def overlap(a: Box, b: Box) -> float:
    """Shared area of two boxes as a fraction of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, width) * max(0.0, height) / smaller


def random_backdrop(rng: np.random.Generator, photographs: tuple[str, ...]) -> Backdrop:
    """A random cut-out (half to all of the shorter edge) of one of the photographs."""
    part = rng.uniform(0.5, 1.0)
    return Backdrop(str(rng.choice(photographs)), rng.uniform(), rng.uniform(), part, bool(rng.integers(2)))


def natural_scene(
    rng: np.random.Generator, canvas: int, photographs: tuple[str, ...], objects: tuple[Entity, ...] = ()
) -> Scene:
    """The naturalistic setting: 2 to 5 objects of sizes that differ up to threefold, off the grid, in clutter.

    objects: the entities to choose from, by default the eight of data/objects/.
    """
    pool = objects or tuple(Entity(name) for name in OBJECT_NAMES)
    placements: list[Placement] = []
    for k in rng.choice(len(pool), size=rng.integers(2, 6), replace=False):
        for _ in range(50):  # a crowded canvas may have no room left: then the object is left out
            side = canvas * rng.uniform(0.11, 0.33)
            x, y = rng.uniform(0, canvas - side, size=2)
            box = (x, y, x + side, y + side)
            if all(overlap(box, other.box) < 0.25 for other in placements):
                placements.append(Placement(pool[k], box, rng.uniform(-25, 25)))
                break
    finish = Finish(
        light=rng.uniform(0, 0.5),
        direction=rng.uniform(0, 360),
        contrast=rng.uniform(0.7, 1.1),
        noise=rng.uniform(2, 12),
        clutter=int(rng.integers(0, 9)),
        seed=int(rng.integers(2**31)),
    )
    return Scene(canvas, tuple(placements), random_backdrop(rng, photographs), finish)


# --- drawing --------------------------------------------------------------------------------------------------

_POLYGONS = {  # vertices in the unit square
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "star": [
        (0.5 + r * np.sin(k * np.pi / 5), 0.53 - r * np.cos(k * np.pi / 5))
        for k, r in ((k, 0.53 if k % 2 == 0 else 0.22) for k in range(10))
    ],
    "cross": list(
        zip(
            (0.33, 0.67, 0.67, 1, 1, 0.67, 0.67, 0.33, 0.33, 0, 0, 0.33),
            (0, 0, 0.33, 0.33, 0.67, 0.67, 1, 1, 0.67, 0.67, 0.33, 0.33),
            strict=True,
        )
    ),
    "heart": [
        (
            0.5 + 0.5 * np.sin(t) ** 3,
            0.45 - (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 32,
        )
        for t in np.linspace(0, 2 * np.pi, 60)
    ],
}

_SUPERSAMPLING = 4


@lru_cache(maxsize=4096)
def _sprite(entity: Entity, width: int, height: int, turn: float = 0.0) -> Image.Image:
    """The entity as an RGBA picture of exactly width x height pixels."""
    if entity.colour is None:
        picture = object_pictures.load(entity.noun, Path(entity.folder or OBJECTS))
        turned = picture.rotate(turn, Image.Resampling.BILINEAR) if turn else picture
        return turned.resize((width, height), Image.Resampling.BOX)
    if entity.colour not in COLOURS:
        raise unknown("colour", entity.colour, COLOURS)
    if entity.noun not in SHAPES:
        raise unknown("shape", entity.noun, SHAPES)
    big = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    mask = Image.new("L", big, 0)
    draw = ImageDraw.Draw(mask)
    if entity.noun == "circle":
        draw.ellipse((0, 0, big[0] - 1, big[1] - 1), fill=255)
    else:
        draw.polygon([(x * big[0] - 0.5, y * big[1] - 0.5) for x, y in _POLYGONS[entity.noun]], fill=255)
    if entity.noun == "square":  # exact, so that a square fills its tokens to the last pixel
        mask = Image.new("L", big, 255)
    if turn:
        mask = mask.rotate(turn, Image.Resampling.BILINEAR)
    sprite = Image.new("RGBA", (width, height), COLOURS[entity.colour])
    sprite.putalpha(mask.resize((width, height), Image.Resampling.BOX))
    return sprite


# Photographs that scikit-image ships in its wheel. Sources and licences: data/README.md.
PHOTOGRAPHS = tuple("astronaut brick chelsea coffee coins grass gravel hubble_deep_field rocket".split())

HELD_OUT_PHOTOGRAPHS = ("astronaut", "coins", "gravel")  # never seen by the reference models in training

TRAINING_PHOTOGRAPHS = tuple(name for name in PHOTOGRAPHS if name not in HELD_OUT_PHOTOGRAPHS)

_PHOTOGRAPH_FILES = {"hubble_deep_field": "hubble_deep_field.jpg", "rocket": "rocket.jpg"}


@lru_cache(maxsize=16)
def _photograph(name: str) -> Image.Image:
    """A photograph of scikit-image's wheel, RGB, shorter edge reduced to 400 px."""
    if name not in PHOTOGRAPHS:
        raise UserError(f"No photograph {name!r}: choose one of {', '.join(PHOTOGRAPHS)}.")
    source = resources.files("skimage.data") / _PHOTOGRAPH_FILES.get(name, f"{name}.png")
    with resources.as_file(source) as path:
        picture = Image.open(path).convert("RGB")
    scale = 400 / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _draw_backdrop(backdrop: Backdrop, canvas: int) -> Image.Image:
    picture = _photograph(backdrop.photograph)
    side = backdrop.part * min(picture.size)
    x, y = backdrop.left * (picture.width - side), backdrop.top * (picture.height - side)
    cut = picture.resize((canvas, canvas), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if backdrop.mirrored else cut


def _draw_clutter(picture: Image.Image, finish: Finish) -> None:
    rng = np.random.default_rng(finish.seed)
    draw = ImageDraw.Draw(picture)
    for _ in range(finish.clutter):
        x, y = rng.uniform(0, picture.width, 2)
        w, h = picture.width * rng.uniform(0.02, 0.09, 2)
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        if rng.uniform() < 0.5:
            draw.ellipse((x, y, x + w, y + h), fill=colour)
        else:
            draw.line((x, y, x + 2 * w, y + 2 * h - picture.width * 0.1), fill=colour, width=2)


def _light_and_noise(picture: Image.Image, finish: Finish) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32)
    ramp = np.linspace(-0.5, 0.5, pixels.shape[0], dtype=np.float32)
    angle = np.deg2rad(finish.direction)
    along = np.cos(angle) * ramp[None, :] - np.sin(angle) * ramp[:, None]
    pixels = 128 + finish.contrast * (pixels - 128)
    pixels *= (1 - finish.light * (0.5 - along))[..., None]
    rng = np.random.default_rng(finish.seed)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * finish.noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of canvas x canvas pixels."""
    if scene.backdrop:
        picture = _draw_backdrop(scene.backdrop, scene.canvas)
    else:
        picture = Image.new("RGB", (scene.canvas, scene.canvas), "white")
    if scene.finish:
        _draw_clutter(picture, scene.finish)
    for placement in scene.placements:
        x0, y0, x1, y1 = (round(v) for v in placement.box)
        sprite = _sprite(placement.entity, x1 - x0, y1 - y0, round(placement.turn))
        picture.paste(sprite, (x0, y0), sprite)
    return _light_and_noise(picture, scene.finish) if scene.finish else picture


def resized(scene: Scene, canvas: int) -> Scene:
    """The same scene on a canvas of another size: boxes scale along."""
    k = canvas / scene.canvas
    placements = tuple(replace(p, box=tuple(v * k for v in p.box)) for p in scene.placements)
    return replace(scene, canvas=canvas, placements=placements)
