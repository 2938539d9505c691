"""An edit of a notebook's text makes its page new and nothing else; an edit of its code makes the run old."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from records import file_run

from lib import places
from lib.artifact import manifests, renewal
from lib.artifact.manifests import Run
from lib.artifact.notebooks import load_notebook
from lib.artifact.staleness import TEXT, made_from, why_stale
from lib.engine.checkpoints import find_model

TABLE = "tables/t.csv"


def cells(text: str = "before", code: str = "x = seed") -> list:
    parameters = new_code_cell('model = "reference"\nseed = 0', id="p", metadata={"tags": ["parameters"]})
    return [new_markdown_cell(f"# 07 Title\n\n{text}", id="m"), parameters, new_code_cell(code, id="c")]


def source(folder, **edits):
    path = folder / "07_trial.ipynb"
    nbformat.write(new_notebook(cells=cells(**edits)), path)
    return load_notebook(path)


@pytest.fixture
def filed(tmp_path):
    """A run of a small notebook on `reference`, executed with another seed, in a record of its own."""
    notebook, model = source(tmp_path), find_model("reference", places.MODELS)
    text, parameters, code = cells()
    code.outputs, code.execution_count = [new_output("stream", text="7\n")], 3
    given = new_code_cell("seed = 7", id="injected-parameters-0", metadata={"tags": ["injected-parameters"]})

    def write(folder):
        (folder / "notebooks").mkdir()
        (folder / "tables").mkdir()
        page = new_notebook(cells=[text, parameters, given, code])
        nbformat.write(page, folder / "notebooks/07_trial.ipynb")
        (folder / TABLE).write_text("a\n1\n")

    made = made_from(notebook, model.name, model.digest, places.MODELS)
    file_run(tmp_path / "record", "reference", "07_trial", write, {"model": "reference", "seed": 7}, made)
    return Run(tmp_path / "record", "reference", "07_trial")


def test_a_page_gets_new_text_and_keeps_its_outputs(filed, tmp_path):
    before, edited = manifests.read(filed), source(tmp_path, text="after")
    parameters = {"seed": 7}
    assert why_stale(filed, edited, parameters, places.MODELS) == TEXT
    assert why_stale(filed, edited, {"seed": 8}, places.MODELS) == "it was run with other parameters"
    renewal.copy(filed, filed, edited)
    assert not why_stale(filed, edited, parameters, places.MODELS)
    page, after = nbformat.read(filed.executed, as_version=4), manifests.read(filed)
    assert [cell.id for cell in page.cells] == ["m", "p", "injected-parameters-0", "c"]
    assert "after" in page.cells[0].source and page.cells[3].outputs[0].text == "7\n"
    assert after["results"][TABLE] == before["results"][TABLE] and not manifests.damaged(filed, after)


def test_code_that_changed_is_no_matter_of_text(filed, tmp_path):
    edited = source(tmp_path, text="after", code="x = seed + 1")
    assert why_stale(filed, edited, {"seed": 7}, places.MODELS) == "notebook changed since"


def test_a_damaged_run_is_not_renewed(filed, tmp_path):
    (filed.folder / TABLE).write_text("a\n2\n")
    assert why_stale(filed, source(tmp_path, text="after"), {"seed": 7}, places.MODELS) == "notebook changed since"


def test_a_run_is_put_into_another_record_with_the_text_of_today(filed, tmp_path):
    edited, to = source(tmp_path, text="after"), Run(tmp_path / "published", "reference", "07_trial")
    renewal.copy(filed, to, edited)
    assert "after" in nbformat.read(to.executed, as_version=4).cells[0].source
    assert "before" in nbformat.read(filed.executed, as_version=4).cells[0].source
    assert not why_stale(to, edited, {"seed": 7}, places.MODELS)
