"""data/README.md lists every file of data/ with its right checksum, and every photograph that is used."""

import re

import pytest

from lib import checksums, scenes
from lib.errors import UserError


def test_every_file_is_listed_with_its_checksum():
    listed = checksums.README.read_text().split(checksums.START)[1].split(checksums.END)[0]
    assert listed == checksums.table(), "run `python -m lib.checksums`"
    assert all(f"| objects/{name}.png |" in listed for name in scenes.OBJECT_NAMES)


def test_every_photograph_has_a_licence():
    text = checksums.README.read_text()
    rows = dict(re.findall(r"(?m)^\| (?:\*held out:\* )?(\w+) \|.*\| ([^|]+) \|$", text))
    assert all(rows[name] for name in scenes.PHOTOGRAPHS)
    held_out = set(re.findall(r"\*held out:\* (\w+)", text))
    assert held_out == set(scenes.HELD_OUT_PHOTOGRAPHS)


def test_writing_the_table_again_changes_nothing(tmp_path, monkeypatch):
    before = checksums.README.read_bytes()
    copy = tmp_path / "README.md"
    copy.write_bytes(before)
    monkeypatch.setattr(checksums, "README", copy)
    checksums.main()
    assert copy.read_bytes() == before
    copy.write_text("without a table")
    with pytest.raises(UserError, match="has lost the lines"):
        checksums.main()
