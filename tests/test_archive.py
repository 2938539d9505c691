"""The archive of the project: all that is committed, nothing else, each file with its checksum, and it runs."""

import subprocess
import sys
import zipfile

import pytest

from lib import files
from lib.artifact import archive
from lib.errors import UserError
from lib.places import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git repository: unpacked from an archive")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    archive.write(folder / "a.zip")
    with zipfile.ZipFile(folder / "a.zip") as packed:
        packed.extractall(folder)
    return folder / archive.NAME


def wrong(folder) -> list[str]:
    """The files whose checksum is not the one in SHA256SUMS."""
    lines = (folder / archive.SUMS).read_text("utf-8").splitlines()
    named = [line.split("  ", 1) for line in lines]
    return [name for digest, name in named if files.file_digest(folder / name) != digest]


def test_all_that_is_committed_and_nothing_else(unpacked):
    committed = archive.git("ls-tree", "-r", "-z", "--name-only", "HEAD").split("\0")
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert found == {name for name in committed if name} | {archive.SUMS}
    needed = {"Makefile", "README.md", "data/models/reference/model.safetensors", "outputs/reference/ledger.json"}
    assert needed <= found
    named = {line.split("  ", 1)[1] for line in (unpacked / archive.SUMS).read_text("utf-8").splitlines()}
    assert named == found - {archive.SUMS}


def test_checksums_hold_and_a_changed_file_is_found(unpacked):
    assert wrong(unpacked) == []
    weights = unpacked / "data/models/reference/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert wrong(unpacked) == ["data/models/reference/model.safetensors"]
    weights.write_bytes(content)


def test_it_runs_elsewhere(unpacked):
    code = "import lib, lib.engine.vlm as v; print(lib.__file__, len(v.load('reference').layers))"
    done = subprocess.run([sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(str(unpacked / "lib")), done.stderr


def test_the_same_commit_gives_the_same_archive(tmp_path, monkeypatch):
    small = tmp_path / "project"
    small.mkdir()
    (small / "a.txt").write_text("one\n")
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", small, *words], check=True)
    monkeypatch.setattr(archive, "ROOT", small)
    (small / "a.txt").write_text("two\n")  # not committed
    assert [archive.write(tmp_path / name) for name in ("1.zip", "2.zip")] == [1, 1]
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as packed:
        assert packed.read("dual-mechanisms/a.txt") == b"one\n"
        assert packed.read("dual-mechanisms/SHA256SUMS").decode() == f"{archive.digest(b'one' + bytes([10]))}  a.txt\n"


def test_without_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="made from a git repository"):
        archive.write(tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []
