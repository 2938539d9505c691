"""The notebooks as files: alike at the top, short cells, and the published copies whole and made by this code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lib import places
from lib.artifact import notebooks, record, verification

SOURCES = sorted(places.NOTEBOOKS.glob("[0-9]*.ipynb"))
CLAIMS = [path for path in SOURCES if "ledger.record(" in path.read_text("utf-8")]  # notebooks that end with verdicts
PUBLISHED = sorted(places.PUBLISHED.glob("*/notebooks/[0-9]*.ipynb"))


def name(path: Path) -> str:
    return f"{path.parent.parent.name}-{path.stem}" if path in PUBLISHED else path.stem


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_notebooks_begin_alike(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert (
        re.search(r"^# 0\d ", cells[0].source) and "**Question:**" in cells[0].source and "**Cost:**" in cells[0].source
    )
    assert "google.colab" in cells[1].source
    assert "figures.use_style()" in cells[2].source
    assert cells[3].metadata.get("tags") == ["parameters"]
    assert "seed" in cells[4].source and "versions" in cells[4].source
    assert {"model", "seed"} <= set(notebooks.load_notebook(path).parameters)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_cells_are_short(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            listed = "figures.use_style()" in cell.source or "parameters" in cell.metadata.get("tags", [])
            assert len(cell.source.splitlines()) <= (25 if listed else 15)  # imports and parameters are lists
            assert not re.search(r"sys\.path|os\.chdir|import pickle", cell.source)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_notebooks_show_the_outputs_of_the_reference_model(path, published):
    """Pictures and last digits aside, which another machine makes a little differently."""
    copy = places.PUBLISHED / "reference/notebooks" / path.name
    here, there = (nbformat.read(each, as_version=4).cells for each in (path, copy))
    assert all(cell.execution_count for cell in here if cell.cell_type == "code"), "run `python -m lib.run --publish`"
    for mine, other in zip(here, there, strict=True):
        assert mine.source == other.source, "run `make run`, then `python -m lib.run --publish`"
        if "nbval-check-output" in mine.metadata.get("tags", []):
            assert mine.outputs == other.outputs, "run `python -m lib.run --publish`"


def test_notebooks_that_end_with_verdicts_are_known():
    assert [path.name[:2] for path in CLAIMS] == ["02", "03", "04", "05"]


@pytest.mark.parametrize("path", CLAIMS, ids=name)
def test_opening_says_the_verdicts_that_the_page_ends_with(path, published):
    """«C1 *not reproduced*» at the top of a page: so say all rows of that claim in the ledger of `reference`, or the
    one for both axes together where there is one."""
    said = re.findall(
        r"(C\d) \*(reproduced|not reproduced|inconclusive|not testable)\*",
        nbformat.read(path, as_version=4).cells[0].source,
    )
    assert said
    for claim, verdict in said:
        rows = [row for row in record.rows("reference") if row["claim"] == claim]
        pooled = [row for row in rows if not row.get("axis")]
        assert {row["verdict"] for row in pooled or rows} == {verdict}, claim


def test_something_is_published():
    assert PUBLISHED, "outputs/ holds no executed notebook: run `make run`, then `python -m lib.run --publish`"


@pytest.mark.parametrize("path", PUBLISHED, ids=name)
def test_published_copies_are_executed_clean_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 2 * 2**20
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert "widget" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None
            kinds = {output.output_type for output in cell.outputs}
            streams = {output.name for output in cell.outputs if output.output_type == "stream"}
            assert "error" not in kinds and "stderr" not in streams


def test_published_results_belong_to_this_code(published):
    faults = verification.faults(notebooks.choose_notebooks([], places.NOTEBOOKS), places.MODELS)
    assert not faults, f"`python -m lib.run --verify` says what repairs this: {'; '.join(map(str, faults[:5]))}"


def nbval(path: Path, outputs: Path) -> subprocess.CompletedProcess:
    """Run a notebook by nbval, which compares the outputs of cells tagged `nbval-check-output`."""
    sanitise = Path(__file__).with_name("nbval_sanitize.cfg")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", str(path), "--nbval-sanitize-with", str(sanitise)]
    command += ["-q", "-p", "no:cacheprovider", "--nbval-current-env", "-c", "/dev/null", "--rootdir", str(path.parent)]
    settings = {places.STAGED: str(outputs), "TQDM_DISABLE": "1", "PYTHONPATH": str(places.ROOT)}
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PUBLISHED if path.parts[-3] == "reference"], ids=name)
def test_running_again_gives_the_same_outputs(path, tmp_path):
    tags = [cell.metadata.get("tags", []) for cell in nbformat.read(path, as_version=4).cells]
    assert any("nbval-check-output" in each for each in tags), "no cell of this notebook is compared"
    done = nbval(path, tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_a_changed_output_is_noticed(tmp_path):
    cell = nbformat.v4.new_code_cell("print(6 * 7)", execution_count=1, metadata={"tags": ["nbval-check-output"]})
    for printed, code in (("42\n", 0), ("43\n", 1)):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)]
        book = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "P"}})
        nbformat.write(book, tmp_path / "x.ipynb")
        assert nbval(tmp_path / "x.ipynb", tmp_path).returncode == code
