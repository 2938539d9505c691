"""README.md and data/README.md agree with the files they tell of."""

import re

import pytest

from lib import places
from lib.artifact import readme
from lib.errors import UserError
from lib.stimuli import scenes


@pytest.mark.parametrize("path, name", readme.PARTS, ids=lambda x: getattr(x, "name", x))
def test_what_is_made_from_files_is_up_to_date(path, name, published):
    text = path.read_text("utf-8")
    assert readme.renewed(text, name, readme.PARTS[path, name]()) == text, "run `python -m lib.artifact.readme`"


def test_every_object_is_listed():
    assert all(f"| objects/{name}.png |" in readme.checksums() for name in scenes.OBJECT_NAMES)


def test_every_photograph_has_a_licence():
    text = (places.DATA / "README.md").read_text()
    rows = dict(re.findall(r"(?m)^\| (?:\*held out:\* )?(\w+) \|.*\| ([^|]+) \|$", text))
    assert all(rows[name] for name in scenes.PHOTOGRAPHS)
    held_out = set(re.findall(r"\*held out:\* (\w+)", text))
    assert held_out == set(scenes.HELD_OUT_PHOTOGRAPHS)


def test_a_part_is_replaced_and_a_lost_mark_is_told():
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
    assert readme.renewed(text, "x", "new\n") == text.replace("old", "new")
    with pytest.raises(UserError, match="must stand once"):
        readme.renewed("nothing here", "x", "new\n")
