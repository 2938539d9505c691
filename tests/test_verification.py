"""`python -m lib.run --verify`: every alteration of a small published record is noticed as docs/REFUSALS.md says, and
the command that it prints repairs it."""

import json
import os
import re
import shutil
import subprocess

import nbformat
import numpy as np
import pytest
from records import reseal
from safetensors.numpy import save_file

from lib import places
from lib.artifact import kernel, manifests, readme, record
from lib.artifact.manifests import Run
from lib.run import main

PARAMETERS = 'model = "reference"\nseed = 0  # of every draw\n'
WORK = """
from lib import places
from lib.analysis.statistics import Estimate
from lib.artifact import ledger, storage
folder, note = places.outputs(model), storage.provenance(model, seed)
storage.write_bytes(folder / "tables/accuracy.csv", b"direction,accuracy\\nleft,0.75\\n", note)
storage.write_bytes(folder / "figures/01-curve.png", b"a picture", note)
rows = [ledger.row("strip_code", Estimate(0.9, 0.8, 1.0, 50), "01_first", "cell", setting=name) for name in "ab"]
print(ledger.record(model, rows, "01_first", seed).shape)
"""
PAGE = "<!-- claims -->\nnone\n<!-- end of claims -->\n<!-- files -->\nnone\n<!-- end of files -->\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A published record of one notebook and one model, in a git repository, made once by the runner."""
    house = tmp_path_factory.mktemp("template")
    (house / "notebooks").mkdir()
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}, id="a"),
        nbformat.v4.new_code_cell(WORK, id="b"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), house / "notebooks/01_first.ipynb")
    model = house / "data/models/reference"
    model.mkdir(parents=True)
    for name, text in {"config.json": "{}", "README.md": "# A card\n| lowest | 0.99 |\n"}.items():
        (model / name).write_text(text)
    save_file({"w": np.arange(6.0)}, model / "model.safetensors")
    (house / "README.md").write_text(PAGE.split("<!-- files")[0])
    (house / "data/README.md").write_text("<!-- files" + PAGE.split("<!-- files")[1])
    (house / ".gitignore").write_text("/runs/\n.*.lock\n.*.tmp*\n")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, house)
        assert call(house) == 0 and call(house, "--publish") == 0
        readme.main()
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "published"]):
        git(house, *words)
    return house


def git(house, *words):
    named = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    subprocess.run(["git", "-C", str(house), *named, *words], check=True, capture_output=True)


def enter(patch, house):
    """Let the library take `house` for the project; its code stays where it is."""
    assert kernel.ROOT == places.LIB.parent  # kernels must find this code, whatever ROOT is in the tests
    for name, folder in {"ROOT": "", "PUBLISHED": "outputs", "RUNS": "runs", "MODELS": "data/models"}.items():
        patch.setattr(places, name, house / folder)
    tables = {(house / "README.md", "claims"): readme.claims, (house / "data/README.md", "files"): readme.checksums}
    patch.setattr(readme, "PARTS", tables)
    patch.setattr(readme, "DATA", house / "data")
    patch.chdir(house)


def call(house, *words):
    os.environ.pop("DUAL_OUTPUTS", None)  # every call is a process of its own where people make it
    return main(list(words), house / "notebooks", house / "data/models")


@pytest.fixture
def house(template, tmp_path, monkeypatch):
    copy = tmp_path / "house"
    shutil.copytree(template, copy)
    monkeypatch.delenv("DUAL_OUTPUTS", raising=False)
    enter(monkeypatch, copy)
    yield copy
    os.environ.pop("DUAL_OUTPUTS", None)


def faults(house, capsys) -> list[tuple[str, str]]:
    """What --verify prints: (complaint, repair), in its order."""
    capsys.readouterr()
    code = call(house, "--verify")
    found = re.findall(r"(?m)^fault: (.*); repaired by: (.*)$", capsys.readouterr().out)
    assert code == (1 if found else 0)
    return found


def repair(house, command: str) -> None:
    """Do what the printed command says; lib.run is called in this process, on this house."""
    for words in (part.split() for part in command.split("; ")):
        if words[:3] == ["python", "-m", "lib.run"]:
            assert call(house, *words[3:]) in (0, 1)  # 1: it differs from the record that is to be repaired
        elif words == ["python", "-m", "lib.artifact.readme"]:
            os.environ.pop("DUAL_OUTPUTS", None)
            readme.main()
        else:
            assert words[0] in ("git", "rm")
            subprocess.run(words, cwd=house, check=True, capture_output=True)


def edit(file, old, new):
    return lambda house: (house / file).write_bytes((house / file).read_bytes().replace(old, new))


def remove(*files):
    return lambda house: [(house / file).unlink() for file in files]


def stray(file, content=b"half a fi"):
    def write(house):
        (house / file).parent.mkdir(parents=True, exist_ok=True)
        (house / file).write_bytes(content)

    return write


def forge(change):
    return lambda house: reseal(Run(house / "outputs", "reference", "01_first"), change)


def in_git(alteration):
    def alter(house):
        alteration(house)
        git(house, "commit", "-q", "-a", "-m", "altered")

    return alter


def other_run(house):
    """A whole run with another seed, published by hand: copied over, with its manifest."""
    assert call(house, "-p", "seed=3") == 0
    shutil.copytree(house / "runs/reference", house / "outputs/reference", dirs_exist_ok=True)


def leftover_of_a_kill(house):
    """A publish that was killed between the commit and the moves: whoever reads next finishes it."""
    folder = house / "outputs/reference/.committed-01_first"
    shutil.copytree(house / "outputs/reference/tables", folder / "tables")
    shutil.copy(house / "outputs/reference/runs/01_first.json", folder / manifests.MANIFEST)
    (house / "outputs/reference/tables/accuracy.csv").unlink()


MANIFEST, NOTEBOOK = "outputs/reference/runs/01_first.json", "notebooks/01_first.ipynb"
TABLE, LEDGER = "outputs/reference/tables/accuracy.csv", "outputs/reference/ledger.json"
EXECUTED = "outputs/reference/notebooks/01_first.ipynb"
REFUSALS = (places.LIB.parent / "docs/REFUSALS.md").read_text("utf-8")
ROWS = re.findall(r"(?m)^\| ([^|`]+) \| ([^|]+) \| `([^|`]+)` \|$", REFUSALS)
TOLD = {alteration: (complaint, repair) for alteration, complaint, repair in ROWS}
ALTERATIONS = {
    "a changed number": edit(TABLE, b"0.75", b"0.99"),
    "a changed number, committed": in_git(edit(TABLE, b"0.75", b"0.99")),
    "a changed figure": stray("outputs/reference/figures/01-curve.png"),
    "a changed verdict": edit(MANIFEST, b'"reproduced"', b'"not reproduced"'),
    "a forged verdict": forge(lambda m: m["ledger"][0].update(verdict="x")),
    "a changed value of the ledger": edit(MANIFEST, b"0.9,", b"0.95,"),
    "a changed value in ledger.json": edit(LEDGER, b"0.9,", b"0.95,"),
    "a row taken from ledger.json": stray(LEDGER, b"[]\n"),
    "a row taken from the manifest": forge(lambda m: m["ledger"].pop()),
    "a manifest cut short": stray(MANIFEST, b'{"schema": 2, "mod'),
    "a deleted result": remove(TABLE),
    "a deleted manifest": remove(MANIFEST),
    "a deleted result with its manifest": remove(TABLE, MANIFEST),
    "a deleted ledger": remove(LEDGER),
    "a deleted model": lambda house: shutil.rmtree(house / "outputs/reference"),
    "a changed summary": edit("outputs/summary.csv", b"0.90", b"0.99"),
    "a stray file": stray("outputs/reference/figures/02-by-hand.png"),
    "a stray beside the models": stray("outputs/notes.txt"),
    "a half-written file": stray("outputs/reference/notebooks/.01_first.7.tmp.ipynb"),
    "a notebook that failed": stray("outputs/reference/notebooks/01_first.failed.ipynb"),
    "what a killed run left": stray("outputs/.staged/reference/01_first/tmpx/a.csv"),
    "an edited table of the README": edit("README.md", b"0.90", b"0.99"),
    "an edited card": edit("data/models/reference/README.md", b"0.99", b"1.00"),
    "an edited digest of a file": edit("data/README.md", b"| `", b"| `0"),
    "forged outputs": edit(NOTEBOOK, b"(2, ", b"(9, "),
    "forged outputs of the copy": edit(EXECUTED, b"(2, ", b"(9, "),
    "other parameters, forged": forge(lambda m: m["parameters"].update(seed=3)),
    "a run of other parameters": other_run,
    "other weights": edit("data/models/reference/config.json", b"{}", b'{"a": 1}'),
    "another notebook": edit(NOTEBOOK, b"of every draw", b"of all draws"),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_alteration_is_noticed_and_what_is_printed_repairs_it(alteration, house, capsys):
    assert faults(house, capsys) == []
    ALTERATIONS[alteration](house)
    found = faults(house, capsys)
    assert TOLD[alteration] in found
    for _ in range(3):  # what follows from the first repair is told, and repaired, after it
        for command in dict.fromkeys(command for _, command in found):
            repair(house, command)
        if not (found := faults(house, capsys)):
            break
    assert found == []
    assert record.figures("reference") == [house / "outputs/reference/figures/01-curve.png"]
    assert len(record.rows("reference")) == 2


def test_the_page_lists_every_alteration():
    assert list(TOLD) == list(ALTERATIONS)


def test_a_publish_that_was_killed_is_finished_by_whoever_reads(house, capsys):
    leftover_of_a_kill(house)
    assert faults(house, capsys) == []
    assert not list((house / "outputs").rglob(".committed*"))


def test_what_no_manifest_names_is_never_read(house):
    for file in (".01_first.7.tmp.ipynb", "09_stray.ipynb", "01_first.failed.ipynb"):
        (house / "outputs/reference/notebooks" / file).write_text('{"cells": [')
    (house / "outputs/reference/figures/02-stray.png").write_bytes(b"x")
    places.use_published()
    assert [path.name for path in record.copies()] == ["01_first.ipynb"]
    assert [path.name for path in record.figures("reference")] == ["01-curve.png"]


def test_publishing_leaves_what_others_keep_in_outputs(house):
    for file in ("outputs/notes.txt", "outputs/reference/left-over.csv"):
        (house / file).write_text("x")
    assert call(house, "--publish") == 0
    assert (house / "outputs/notes.txt").exists() and not (house / "outputs/reference/left-over.csv").exists()
    manifest = json.loads((house / MANIFEST).read_bytes())
    assert set(manifest["results"]) == {"notebooks/01_first.ipynb", "tables/accuracy.csv", "figures/01-curve.png"}
