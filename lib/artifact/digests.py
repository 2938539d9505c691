"""What makes a result stale: the code that can change it, as digests that rewording leaves alone.

The code of a notebook is its own cells and the modules of lib that it reaches by import, also by imports inside
functions, with what those import in turn. A module counts by its syntax tree without docstrings, comments and
positions; a notebook by the text of its cells, because its page shows them, without cells tagged `colab`, which set
up a machine. The files of a folder of data/ count where the code reaches the module that reads them (`READERS`).

What can be reached depends on the model: `lib.engine.vlm.load` derives a record, and certifies it, only for a model
of a family that has none written. Embedded models have one, so that their runs leave out what only those imports reach.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from lib import places
from lib.files import files_digest

SET_UP = "colab"  # tag of cells that only set up a machine
READERS = {  # folder of data/ -> the module that reads it, and its files
    "objects": ("lib.stimuli.object_pictures", "*.png"),
    "dynamics": ("lib.analysis.dynamics", "*.csv"),
    "published": ("lib.analysis.published_counts", "*.csv"),
}
DERIVING = {"lib.engine.vlm": ("lib.engine.derived.reading", "lib.engine.certificate")}  # imports of a derived record


def code(sources: Iterable[str], folder: Path = places.LIB, derived: bool = True) -> dict[str, str]:
    """The modules that code cells reach, by name, each with the digest of its syntax tree.

    folder: the folder of lib. derived: whether the model's record may be derived; False for a model of a family whose
    record is written. Folders of data/ that these modules read are listed beside them, as data/objects.
    """
    modules = reached(sources, folder, derived)
    digests = {name: tree_digest(path.read_text("utf-8")) for name, path in sorted(modules.items())}
    for name, (reader, files) in READERS.items():
        if reader in modules:
            found = {path.name: path for path in (places.DATA / name).glob(files)}
            digests[f"data/{name}"] = files_digest(found)[:16]
    return digests


def cells(notebook_cells: Iterable) -> str:
    """Digest of the cells of a notebook: kinds and texts, not outputs."""
    texts = [[cell.cell_type, cell.source] for cell in notebook_cells if not sets_up(cell)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def sets_up(cell) -> bool:
    return SET_UP in cell.metadata.get("tags", [])


def reached(sources: Iterable[str], folder: Path = places.LIB, derived: bool = True) -> dict[str, Path]:
    """Name and file of every module of lib that these sources import, and that those import, and so on.

    derived: follow the imports that only the derivation of a record needs (`DERIVING`), too.
    """
    found: dict[str, Path] = {}
    waiting = [name for source in sources for name in imports(source)]
    while waiting:
        name = waiting.pop()
        path = module_file(name, folder)
        if path is None or name in found:
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        unused = () if derived else DERIVING.get(name, ())
        names = [each for each in imports(path.read_text("utf-8"), package) if not each.startswith(unused)]
        waiting += [name.rpartition(".")[0], *names]
    return found


def module_file(name: str, folder: Path) -> Path | None:
    """The file of a module of lib; None for other packages and for names that are no modules."""
    top, *parts = name.split(".")
    if top != "lib":
        return None
    path = folder.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@lru_cache(maxsize=1000)
def imports(source: str, package: str = "") -> list[str]:
    """What a source may import from lib; `from a import b` gives a and a.b, since b may be a module.

    package: where relative imports start.
    """
    names = []
    for node in ast.walk(ast.parse(without_magics(source))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return [name for name in names if name == "lib" or name.startswith("lib.")]


def without_magics(source: str) -> str:
    """A cell as plain Python: lines for IPython or the shell do nothing here."""
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source)


@lru_cache(maxsize=1000)
def tree_digest(source: str) -> str:
    """Digest of a module's syntax tree, the same for sources that differ in docstrings, comments and layout only."""
    return hashlib.sha256(json.dumps(plain(ast.parse(source))).encode()).hexdigest()[:16]


def plain(node) -> object:
    """A syntax tree as nested lists that all supported Pythons agree on.

    Left out: positions, empty fields (Python 3.12 and 3.13 added some), the kind of a string literal, and statements
    that are a mere string. Adjacent pieces of text in an f-string become one, since Pythons cut them differently.
    """
    if isinstance(node, list):
        return [plain(part) for part in node if not is_text(part)]
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr", pieces(node.values)]
    if isinstance(node, ast.AST):
        fields = [(name, plain(value)) for name, value in ast.iter_fields(node) if name not in ("kind", "type_comment")]
        kept = [[name, value] for name, value in fields if value not in (None, [], ["JoinedStr", []])]
        return [type(node).__name__, *kept]
    return node if node is None or isinstance(node, (bool, int, str)) else [type(node).__name__, repr(node)]


def is_text(node) -> bool:
    """Is this statement a docstring or another string that does nothing?"""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def pieces(values: list) -> list:
    """The parts of an f-string, pieces of text that stand beside one another joined."""
    parts: list = []
    for value in values:
        text = value.value if isinstance(value, ast.Constant) else None
        if text is not None and parts and isinstance(parts[-1], str):
            parts[-1] += text
        elif text != "":
            parts.append(plain(value) if text is None else text)
    return parts
