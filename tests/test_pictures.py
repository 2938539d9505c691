"""The stored object pictures: what the code draws, transparent around the object, easy to tell apart."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from lib import places
from lib.stimuli import object_pictures


def on(ground: str, picture: Image.Image) -> np.ndarray:
    """The picture laid over a plain ground, as grey levels (height, width, 3)."""
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB"), int)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Image.Image]:
    return {name: object_pictures.draw(name) for name in object_pictures.NAMES}


def test_names():
    assert object_pictures.NAMES == ("orange", "apple", "pot", "bell", "hat", "rose", "key", "bomb")


@pytest.mark.parametrize("name", object_pictures.NAMES)
def test_stored_file_is_what_the_code_draws(name, drawn):
    path = places.OBJECTS / f"{name}.png"
    stored = Image.open(path)
    assert (stored.mode, stored.size) == ("RGBA", (224, 224))
    assert path.stat().st_size < 40_000
    for ground in ("white", "black"):  # two grounds: colour and alpha both count, colour under alpha 0 does not
        assert np.abs(on(ground, stored) - on(ground, drawn[name])).max() <= 2


@pytest.mark.parametrize("name", object_pictures.NAMES)
def test_object_is_centred_fills_the_square_and_is_not_clipped(name, drawn):
    alpha = np.asarray(drawn[name].getchannel("A"))
    assert not alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    spans = [(axis[0], axis[-1]) for axis in (rows, columns)]
    assert 0.90 <= max(b - a + 1 for a, b in spans) / 224 <= 0.96
    assert all(abs((a + b) / 2 - 111.5) <= 1 for a, b in spans)
    left, top, right, bottom = object_pictures.sketch(name).getbbox()
    assert min(left, top) > 0 and max(right, bottom) < object_pictures.CANVAS


def test_drawing_is_deterministic(drawn):
    assert all(object_pictures.draw(name).tobytes() == drawn[name].tobytes() for name in object_pictures.NAMES)


@pytest.mark.parametrize("pixels", (28, 56))
def test_every_pair_differs_clearly(pixels):
    small = {name: on("white", object_pictures.draw(name, pixels)) for name in object_pictures.NAMES}
    gaps = {(a, b): np.abs(small[a] - small[b]).mean() for a, b in combinations(object_pictures.NAMES, 2)}
    assert min(gaps.values()) > 30, min(gaps, key=gaps.get)


def test_write_all(tmp_path):
    object_pictures.write_all(tmp_path / "objects")
    assert sorted(p.stem for p in (tmp_path / "objects").iterdir()) == sorted(object_pictures.NAMES)
