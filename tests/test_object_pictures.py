"""The stored object pictures: what tools/draw_objects.py draws, transparent around the object, easy to tell apart."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from lib import places
from lib.stimuli import object_pictures
from tools import draw_objects


def on(ground: str, picture: Image.Image) -> np.ndarray:
    """The picture laid over a plain ground, as grey levels (height, width, 3)."""
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB"), int)


def stored(name: str) -> Image.Image:
    return Image.open(places.OBJECTS / f"{name}.png")


@pytest.mark.parametrize("name", object_pictures.NAMES)
def test_stored_file_is_what_the_code_draws(name):
    picture = stored(name)
    assert (picture.mode, picture.size) == ("RGBA", (224, 224))
    assert (places.OBJECTS / f"{name}.png").stat().st_size < 40_000
    for ground in ("white", "black"):  # two grounds: colour and alpha both count, colour under alpha 0 does not
        assert np.abs(on(ground, picture) - on(ground, draw_objects.draw(name))).max() <= 2


def test_every_object_is_drawn_and_stored(tmp_path):
    draw_objects.write_all(tmp_path / "objects")
    for folder in (tmp_path / "objects", places.OBJECTS):
        assert sorted(path.stem for path in folder.glob("*.png")) == sorted(object_pictures.NAMES)


@pytest.mark.parametrize("name", object_pictures.NAMES)
def test_object_is_centred_fills_the_square_and_is_not_clipped(name):
    alpha = np.asarray(stored(name).getchannel("A"))
    assert not alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    spans = [(axis[0], axis[-1]) for axis in (rows, columns)]
    assert 0.90 <= max(b - a + 1 for a, b in spans) / 224 <= 0.96
    assert all(abs((a + b) / 2 - 111.5) <= 1 for a, b in spans)


@pytest.mark.parametrize("pixels", (28, 56))
def test_every_pair_differs_clearly(pixels):
    small = {
        name: on("white", stored(name).resize((pixels, pixels), Image.Resampling.LANCZOS))
        for name in object_pictures.NAMES
    }
    gaps = {(a, b): np.abs(small[a] - small[b]).mean() for a, b in combinations(object_pictures.NAMES, 2)}
    assert min(gaps.values()) > 30, min(gaps, key=gaps.get)
