"""Loaders of real photographs: What'sUp composites and COCO-spatial (PROTOCOL.md 1; floor 1). Neither is in data/.

What'sUp (Kamath et al. 2023, "What's up with vision-language models?"): the folder of the controlled set, with files
such as `<object>_left_of_<reference>.jpeg`. COCO-spatial: the two-object question file of the same release, with rows
[image id, true caption, false caption], and the val2017 photographs and instances_val2017.json of cocodataset.org.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from itertools import product
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from PIL import Image
from tqdm import tqdm

from lib.errors import UserError
from lib.files import write_bytes, write_json
from lib.stimuli.grids import Box
from lib.stimuli.questions import ORIENTATION, Item, SideItem, side_of, whatsup_question
from lib.stimuli.scenes import Entity

# --- pictures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photograph:
    """A photograph in a file, resized to the square canvas; its proportions change, and its boxes scale with it."""

    path: Path

    def image(self, canvas: int) -> Image.Image:
        """RGB, canvas x canvas pixels, bilinear; an unreadable file is a UserError."""
        return _resized(self.path, canvas).copy()


@dataclass(frozen=True)
class Composite:
    """The left half of one What'sUp photograph and the right half of another, each resized to the square canvas."""

    left: Path
    right: Path

    def image(self, canvas: int) -> Image.Image:
        """RGB, canvas x canvas pixels; the middle column of an odd canvas belongs to the right half."""
        first, second = (Photograph(path).image(canvas) for path in (self.left, self.right))
        half = canvas // 2
        first.paste(second.crop((half, 0, canvas, canvas)), (half, 0))
        return first


@lru_cache(maxsize=64)  # composites use every photograph dozens of times
def _resized(path: Path, canvas: int) -> Image.Image:
    try:
        return Image.open(path).convert("RGB").resize((canvas, canvas), Image.Resampling.BILINEAR)
    except FileNotFoundError:
        raise UserError(f"There is no picture {path}: check the folder.") from None
    except (OSError, SyntaxError, ValueError) as problem:
        raise UserError(f"{path} is not a readable picture ({problem}): fetch it again.") from None


# --- What'sUp -----------------------------------------------------------------------------------------------

FLOOR_REFERENCES = ("chair", "table", "armchair")
_ON_FLOOR = re.compile(r"(?P<name>.+)_(?P<side>left|right)_of_(?P<reference>.+)\.jpe?g")


def whatsup(
    folder: str | Path,
    references: tuple[str, ...] = FLOOR_REFERENCES,
    keep: Callable[[str], bool] = lambda name: True,
) -> list[Item]:
    """Two items (left, right) for every composite of two different objects around one reference.

    folder: contains the photographs, or a folder `controlled_images` that does. keep: which object names to use, for
    instance those that are one token for a model. Entities of an item: left object, reference, right object.
    """
    folder = _folder(folder, "controlled_images", "the photographs of What'sUp's controlled set")
    found = [(path, match) for path in sorted(folder.iterdir()) if (match := _ON_FLOOR.fullmatch(path.name))]
    sides: dict[tuple[str, str], dict[str, Path]] = {}
    for path, match in found:
        name, reference = match["name"].replace("-", " "), match["reference"]
        if reference in references and keep(name):
            sides.setdefault((reference, match["side"]), {})[name] = path
    items = []
    for reference in references:
        lefts, rights = (sides.get((reference, side), {}) for side in ("left", "right"))
        for (a, left), (b, right) in product(lefts.items(), rights.items()):
            if a != b:
                for target, direction in enumerate(("left", "right")):
                    names = (a, b)
                    items.append(
                        Item(
                            "whatsup",
                            direction,
                            Composite(left, right),
                            whatsup_question(direction, reference),
                            (names[target], names[1 - target], reference),
                            "test",
                            (Entity(a), Entity(reference), Entity(b)),
                            2 * target,
                        )
                    )
    if not items:
        raise UserError(
            f"{folder} has no two photographs like book_left_of_chair.jpeg and cup_right_of_chair.jpeg to "
            "join: name the folder of What'sUp's controlled set."
        )
    return items


def _folder(folder: str | Path, inner: str, what: str) -> Path:
    folder = Path(folder).expanduser()
    folder = folder / inner if (folder / inner).is_dir() else folder
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name the one that holds {what}.")
    return folder


# --- COCO-spatial -------------------------------------------------------------------------------------------

_CAPTION = re.compile(
    r"A photo of an? (?P<subject>.+?) (?P<relation>to the left of|to the right of|above|below) "
    r"an? (?P<reference>.+)"
)


@dataclass(frozen=True)
class Skipped:
    """A row of the question file that could not be used, and why; rows are counted from 0."""

    row: int
    image_id: int
    caption: str
    reason: str


@dataclass(frozen=True)
class CocoSpatial:
    """The items that were loaded, and the rows that were skipped."""

    items: tuple[SideItem, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        counts = Counter(s.reason for s in self.skipped)
        reasons = "; ".join(f"{n} {reason}" for reason, n in counts.most_common())
        return f"{len(self.items)} items loaded, {len(self.skipped)} skipped" + (f" ({reasons})" if reasons else "")


def coco_spatial(question_file: str | Path, images: str | Path, instances_file: str | Path) -> CocoSpatial:
    """Every question of the two-object file whose photograph is in `images` (or in images/val2017).

    Boxes: of all pairs of a subject box and a reference box (without crowds) whose centres agree with the stated
    relation, the pair with the largest total area. Rows with an unknown relation, without a photograph, without boxes,
    or without a pair that agrees are listed in `skipped`. It is a UserError if no row can be used.
    """
    rows = _questions(question_file)
    folder = _folder(images, "val2017", "the photographs of COCO val2017, such as 000000000802.jpg")
    sizes, boxes = _instances(instances_file)
    items, skipped = [], []
    for number, (image_id, caption) in enumerate(rows):

        def skip(reason, row=(number, image_id, caption)):
            skipped.append(Skipped(*row, reason))

        path = folder / coco_name(image_id)
        match = _CAPTION.fullmatch(caption)
        if not match:
            skip("with another relation or wording")
        elif not path.is_file():
            skip("without their photograph")
        elif image_id not in sizes:
            skip("without an entry in the annotations")
        else:
            subject, reference = match["subject"], match["reference"]
            relation = match["relation"].removeprefix("to the ").removesuffix(" of")
            subjects, references = (boxes.get((image_id, name), []) for name in (subject, reference))
            axis = 0 if ORIENTATION[relation] == "horizontal" else 1
            agreeing = [
                (a, b) for a, b in product(subjects, references) if side_of(_centre(a), _centre(b), axis) == relation
            ]
            if not (subjects and references):
                skip("without a box of subject or reference")
            elif not agreeing:
                skip("without boxes that agree with the stated relation")
            else:
                a, b = max(agreeing, key=lambda pair: _area(pair[0]) + _area(pair[1]))
                scene, size = Photograph(path), sizes[image_id]
                items.append(SideItem("coco", str(image_id), scene, subject, reference, relation, a, b, size))
    result = CocoSpatial(tuple(items), tuple(skipped))
    if not items:
        raise UserError(f"No COCO question can be asked, {result}: fetch the photographs or name their folder.")
    return result


def coco_ids(question_file: str | Path) -> list[int]:
    """Ids of the photographs that a question file asks about, each once, ascending."""
    return sorted({image_id for image_id, _ in _questions(question_file)})


def coco_name(image_id: int) -> str:
    """File name of a photograph in val2017."""
    return f"{image_id:012d}.jpg"


def _questions(path: str | Path) -> list[tuple[int, str]]:
    """(image id, true caption) of every row."""
    rows = _json(path, "the two-object question file")
    try:
        if not rows:
            raise UserError(f"{path} holds no questions: name the two-object question file.")
        return [(int(image_id), str(caption)) for image_id, caption, *_ in rows]
    except (TypeError, ValueError):
        problem = "has rows that are not [image id, true caption, false caption]"
        raise UserError(f"{path} {problem}: name the two-object question file.") from None


def _instances(path: str | Path) -> tuple[dict[int, tuple[int, int]], dict[tuple[int, str], list[Box]]]:
    """Size (width, height) of every picture, and the boxes (x0, y0, x1, y1) of every category in it."""
    content = _json(path, "instances_val2017.json")
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        sizes = {picture["id"]: (picture["width"], picture["height"]) for picture in content["images"]}
        boxes: dict[tuple[int, str], list[Box]] = {}
        for note in content["annotations"]:
            if not note["iscrowd"]:
                x, y, width, height = note["bbox"]
                key = note["image_id"], names[note["category_id"]]
                boxes.setdefault(key, []).append((x, y, x + width, y + height))
    except (KeyError, TypeError, ValueError) as problem:
        raise UserError(f"{path} is not an instances file of COCO ({problem!r}): fetch it again.") from None
    return sizes, boxes


def _json(path: str | Path, what: str):
    path = Path(path).expanduser()
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"There is no file {path}: name {what}.") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} is not readable JSON ({problem}): name {what} or fetch it again.") from None


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# --- fetching -----------------------------------------------------------------------------------------------

COCO_URL = "https://images.cocodataset.org/val2017"
MANIFEST = "sha256.json"  # beside the photographs: {file name: digest}


def fetch_coco(
    image_ids: Iterable[int],
    folder: str | Path,
    url: str = COCO_URL,
    tries: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Fetch photographs one by one into `folder`; complete ones that are already there are not fetched again.

    Each is checked (length as announced, readable to its last row), written under a temporary name and renamed, and
    entered in the manifest. After a failure there are up to `tries` attempts, `wait` seconds apart at first and twice
    as long each time. If they all fail, or the server has no such picture, a UserError ends the run; the same call
    continues it.
    """
    folder = Path(folder).expanduser()
    manifest = folder / MANIFEST
    try:
        digests = dict(json.loads(manifest.read_bytes()))
    except (OSError, ValueError, TypeError):
        digests = {}  # missing or damaged: the photographs are checked again
    for image_id in tqdm(sorted(set(image_ids)), desc="COCO photographs", unit="file", disable=not progress):
        name = coco_name(image_id)
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if digests.get(name) == _digest(content):
            continue
        if not _whole(content):
            content = _fetch(f"{url}/{name}", tries, wait, timeout)
            write_bytes(path, content)
        digests[name] = _digest(content)
        write_json(dict(sorted(digests.items())), manifest)
    return folder


def _fetch(address: str, tries: int, wait: float, timeout: float) -> bytes:
    """The body of an address, once it is complete and a readable picture."""
    for attempt in range(tries):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            with urlopen(address, timeout=timeout) as reply:
                content = reply.read()  # shorter than announced: IncompleteRead
            if _whole(content):
                return content
            problem = "what came is not a whole picture"
        except (OSError, HTTPException) as error:  # no network, time-out, cut connection, an HTTP status
            problem = str(error) or type(error).__name__
            if isinstance(error, HTTPError) and error.code < 500 and error.code != 429:
                break
    raise UserError(
        f"Cannot fetch {address} ({problem}): run the same again when the network is there, or put the "
        "photographs of COCO val2017 into a folder and name that; what was fetched is kept."
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _whole(content: bytes) -> bool:
    """Whether this is a picture that can be decoded to its end."""
    try:
        Image.open(io.BytesIO(content)).load()
        return True
    except (OSError, SyntaxError, ValueError):
        return False
