"""Notebooks as files: what a source notebook says of itself, and executed copies fit for version control."""

import ast
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from lib import files, places
from lib.artifact import digests
from lib.errors import UserError, unknown
from lib.places import show


@dataclass(frozen=True)
class Notebook:
    """A source notebook. `digest` covers its cells, not their outputs."""

    path: Path
    parameters: dict  # name -> default, from the cell tagged `parameters`
    comments: dict  # name -> the comment behind it
    title: str  # the first heading
    cost: str  # from a line such as "**Cost:** two minutes on two CPU cores"
    source: str  # of all cells
    code: tuple[str, ...]  # of the code cells that compute, set-up left out
    reads_all_models: bool  # does a cell tagged `all-models` put every shipped model beside its own?
    digest: str

    @property
    def name(self) -> str:
        return self.path.stem


def load_notebook(path: Path) -> Notebook:
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise UserError(f"{show(path)} is not a readable notebook: restore it with git") from error
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    title = re.search(r"(?m)^# (.+)$", text)
    cost = re.search(r"(?im)^\W*(?:cost|time)\b\W*(.+?)[\s.]*$", text)
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    parameters, comments = parse_parameters(tagged[0] if tagged else "", path)
    if not isinstance(parameters.get("model"), str):
        raise UserError(f'{show(path)} has no cell tagged `parameters` that sets model = "...": add it')
    code = tuple(cell.source for cell in cells if cell.cell_type == "code" and not digests.sets_up(cell))
    return Notebook(
        path,
        parameters,
        comments,
        title[1] if title else path.stem,
        cost[1] if cost else "not stated",
        "\n".join(cell.source for cell in cells),
        code,
        any("all-models" in cell.metadata.get("tags", []) for cell in cells),
        digests.cells(cells),
    )


def parse_parameters(source: str, path: Path) -> tuple[dict, dict]:
    """Names, defaults and comments of a `parameters` cell: lines `name = literal  # comment` only."""
    parameters, comments = {}, {}
    try:
        for node in ast.parse(source).body:
            (name,) = node.targets if isinstance(node, ast.Assign) else (node.target,)
            parameters[name.id] = ast.literal_eval(node.value)
            line = source.splitlines()[node.end_lineno - 1].encode()  # ast counts columns in bytes
            comments[name.id] = line[node.end_col_offset :].decode().strip(" #")
    except (SyntaxError, ValueError, AttributeError) as error:
        raise UserError(f"the parameters cell of {show(path)} may hold only `name = literal` lines") from error
    return parameters, comments


def choose_notebooks(words: list[str], folder: Path) -> list[Notebook]:
    """The notebooks meant by numbers or names (no words: all), always in the order of their numbers."""
    files = {path.stem: path for path in sorted(folder.glob("[0-9]*.ipynb")) if not path.stem.endswith(".failed")}
    if not files:
        raise UserError(f"there are no notebooks in {show(folder)}: run from a full clone of the project")
    chosen = set()
    for word in words:
        stem = word.removesuffix(".ipynb")
        hits = [name for name in files if stem in (name, name.split("_")[0], name.split("_")[0].lstrip("0"))]
        if not hits:
            raise unknown("notebook", word, files)
        chosen.update(hits)
    return [load_notebook(path) for name, path in files.items() if name in chosen or not words]


# Executed copies


def tidy(draft: Path, replacements: dict[str, str]) -> nbformat.NotebookNode:
    """An executed notebook without what differs between equal runs: timings, process ids, places on disk.

    `replacements` (path -> what to write for it) come on top of those for project, interpreter and home.
    """
    nb = nbformat.read(draft, as_version=4)
    nb.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in nb.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    for tag in ("injected-parameters", "papermill-error-cell-tag", "papermill-error-cell"):
        for number, cell in enumerate(c for c in nb.cells if tag in c.metadata.get("tags", [])):
            cell.id = f"{tag}-{number}"  # papermill draws ids at random
    known = {
        f"{places.ROOT}{os.sep}": "",
        str(places.ROOT): ".",
        str(places.record()): "outputs",
        sys.prefix: "<python>",
        str(Path.home()): "~",
    }
    pairs = [(old, new) for old, new in (known | replacements).items() if os.sep in old and len(old) > 1]
    return scrub(nb, sorted(pairs, key=lambda pair: -len(pair[0])))  # longest first: one may hold another


def joined(outputs: list) -> list:
    """What was printed in one go as one output: where the kernel cut it is a matter of timing."""
    out = []
    for output in outputs:
        before = out[-1] if out else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            before.text += output.text
        else:
            out.append(output)
    return out


def scrub(value, pairs):
    """`value` with the replacements made in every string of it; pictures are left alone."""
    if isinstance(value, str):
        for old, new in pairs:
            value = value.replace(old, new)
        return re.sub(r"[^\s\"']*ipykernel_\d+/\d+\.py", "<cell>", value)
    if isinstance(value, list):
        return [scrub(part, pairs) for part in value]
    if isinstance(value, dict):
        return nbformat.from_dict(
            {key: part if key.startswith("image/") else scrub(part, pairs) for key, part in value.items()}
        )
    return value


def write_notebook(nb, path: Path) -> None:
    files.write_bytes(path, (nbformat.writes(nb).rstrip() + "\n").encode())
