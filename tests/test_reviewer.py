"""What docs/ARTIFACT.md promises exists: files, cells, commands."""

import re

from lib import places
from lib.artifact import ledger, manifests, record, reviewer
from lib.artifact.notebooks import load_notebook
from lib.engine.embedded import DEFAULT

PAGE = (places.ROOT / "docs/ARTIFACT.md").read_text("utf-8")


def test_every_claim_has_a_line_and_its_files(published):
    claims = {row["claim"] for row in record.rows(DEFAULT)}
    assert {claim for claim in claims if f"| **{claim}** " in reviewer.table()} == claims
    assert set(reviewer.SHOWN) == {measure.claim for measure in ledger.MEASURES.values()}
    assert reviewer.missing() == []


def test_times_are_those_of_the_stamps(published):
    lines = reviewer.times().splitlines()
    assert len(lines) == 2 + len(record.models())
    for run in manifests.readable(places.record()):
        if run.model == record.SEEDS:  # collected, no notebook
            continue
        (line,) = [line for line in lines if line.startswith(f"| `{run.model}` |")]
        assert f" {reviewer.minutes(run.notebook, run.model)} " in line
    assert reviewer.minutes("99_none", DEFAULT) == "-"


def test_the_commands_of_the_page_exist():
    makefile = (places.ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", PAGE):
        assert re.search(rf"(?m)^{target}:", makefile), target
    for path in re.findall(r"tests/\w+\.py", PAGE):
        assert (places.ROOT / path).is_file(), path
    numbers = {number for group in re.findall(r"NOTEBOOKS=([\d,]+)", PAGE) for number in group.split(",")}
    assert numbers <= {load_notebook(path).name[:2] for path in places.NOTEBOOKS.glob("[0-9]*.ipynb")}


def test_the_dockerfile_does_the_two_commands():
    lines = (places.ROOT / "Dockerfile").read_text().splitlines()
    assert "FROM python:3.11-slim" in lines
    assert any(line.startswith("CMD") and "make run && make test" in line for line in lines)
    ignored = (places.ROOT / ".dockerignore").read_text().split()
    assert {".venv", "runs", "site"} <= set(ignored) and not {"data", "outputs", "tests", "notebooks"} & set(ignored)
