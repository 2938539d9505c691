"""New text for the pages of runs whose code stands: prose can be edited without running anything again.

A page shows the text of its notebook, so that an edit of it makes the page old, but no result depends on it.
"""

import shutil
from pathlib import Path

import nbformat

from lib.artifact import manifests
from lib.artifact.manifests import Run
from lib.artifact.notebooks import Notebook, write_notebook
from lib.artifact.staleness import injected
from lib.files import file_digest


def copy(run: Run, to: Run, notebook: Notebook) -> None:
    """Put a run into another record, or in its place in the same one, as a transaction there; its page gets the text
    that the notebook has now."""
    manifest = manifests.read(run)
    if run == to and manifest["made_from"]["cells"] == notebook.digest:
        return
    with manifests.staged(to) as folder:
        for file in manifest["results"]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.folder / file, folder / file)
        if manifest["made_from"]["cells"] != notebook.digest:
            page = run.executed.relative_to(run.folder)
            write_notebook(with_text_of(notebook.path, run.executed), folder / page)
            manifest["made_from"]["cells"] = notebook.digest
            manifest["results"][page.as_posix()]["sha256"] = file_digest(folder / page)
        manifests.place(to, folder, manifest)


def with_text_of(source: Path, executed: Path) -> nbformat.NotebookNode:
    """An executed notebook with the text cells of another one that has the same code cells."""
    page = nbformat.read(executed, as_version=4)
    code = {cell.id: cell for cell in page.cells}
    cells = []
    for cell in nbformat.read(source, as_version=4).cells:
        cells.append(code[cell.id] if cell.cell_type == "code" else cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells += [each for each in page.cells if injected(each)]
    page.cells = cells
    return page
