"""Rewording makes nothing stale; a line of arithmetic makes exactly those notebooks stale that reach it."""

import json
import shutil
import subprocess
import sys

import nbformat
import pytest

from lib import places
from lib.artifact import digests, staleness
from lib.artifact.notebooks import load_notebook
from lib.engine import embedded
from lib.engine.checkpoints import shipped
from lib.engine.families import written

NOTEBOOKS = sorted(places.NOTEBOOKS.glob("[0-9]*.ipynb"))


@pytest.fixture
def copy(tmp_path):
    """A copy of lib that may be edited."""
    return shutil.copytree(places.LIB, tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))


def codes(folder, derived=True):
    """By notebook, the modules it reaches and their digests; derived: for a model whose record is derived."""
    found = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        sources = [c.source for c in cells if c.cell_type == "code" and not digests.sets_up(c)]
        found[path.stem] = digests.code(sources, folder, derived)
    return found


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_docstring_and_a_comment_make_nothing_stale(copy):
    before = codes(copy)
    for path in copy.rglob("*.py"):
        path.write_text(f'"""Reworded."""\n{path.read_text()}\n\n# and a comment\n')
    edit(copy / "analysis/statistics.py", "def mean(", "\ndef   mean(")
    assert codes(copy) == before


def test_arithmetic_makes_those_stale_that_reach_it(copy):
    before = codes(copy)
    (copy / "analysis/knockout.py").open("a").write("\nEXTRA = 1 + 1\n")
    after = codes(copy)
    stale = {name for name in before if before[name] != after[name]}
    assert stale == {name for name in before if "lib.analysis.knockout" in before[name]}
    assert stale == {"03_backbone_relation_probing"}
    changed = {module for name in stale for module in after[name] if after[name][module] != before[name][module]}
    assert changed == {"lib.analysis.knockout"}


@pytest.mark.parametrize(
    "folder, stale",
    [
        ("dynamics", {"06_training_dynamics"}),
        ("published", {"02_vision_encoder_patching"}),
        ("objects", {path.stem for path in NOTEBOOKS}),
    ],
)
def test_data_make_those_stale_that_reach_the_module_that_reads_them(folder, stale, copy, tmp_path, monkeypatch):
    before = codes(copy)
    for name in digests.READERS:
        shutil.copytree(places.DATA / name, tmp_path / "data" / name)
    monkeypatch.setattr(places, "DATA", tmp_path / "data")
    assert codes(copy) == before
    next((tmp_path / "data" / folder).glob(digests.READERS[folder][1])).open("ab").write(b"more")
    after = codes(copy)
    assert {name for name in before if before[name] != after[name]} == stale


def test_what_runs_and_shows_notebooks_is_reached_by_none(copy):
    reached = {module for modules in codes(copy).values() for module in modules}
    assert {"lib.engine.vlm", "lib.stimuli.scenes", "data/objects", "lib", "lib.artifact.ledger"} <= reached
    outside = {"lib.run", "lib.artifact.record", "lib.artifact.readme", "lib.artifact.seeds", "lib.artifact.colab"}
    assert not outside & reached and not any(name.startswith("lib.reference") for name in reached)


@pytest.mark.parametrize("file", ["engine/derived/derive.py", "engine/certificate.py"])
def test_the_derivation_counts_where_a_record_is_derived(copy, file):
    derived, embedded_models = codes(copy), codes(copy, derived=False)
    (copy / file).open("a").write("\nEXTRA = 1 + 1\n")
    after = codes(copy)
    assert after and all(after[name] != derived[name] for name in after)
    assert codes(copy, derived=False) == embedded_models
    module = f"lib.{file.removesuffix('.py').replace('/', '.')}"
    (copy / "engine/encoder.py").open("a").write(f"\nimport {module}\n")  # now every model needs it
    assert all(module in modules for modules in codes(copy, derived=False).values())


def test_only_runs_of_embedded_models_leave_the_derivation_out():
    notebook = load_notebook(NOTEBOOKS[0])
    digest = {derived: staleness.code_digest(notebook.code, derived) for derived in (True, False)}
    assert digest[True] != digest[False]
    for name in ("reference", "joint-seed1", "mine", "qwen2-vl-2b"):
        made = staleness.made_from(notebook, name, "weights", places.MODELS)
        assert made["code"] == digest[name in ("mine", "qwen2-vl-2b")], name


def test_embedded_models_are_loaded_without_the_derivation():
    families = {}
    for name, folder in shipped().items():
        config = json.loads((folder / "config.json").read_text())
        families[name] = written(config["model_type"], config["vision_config"]["model_type"])
    assert all(families[name] for name in families if embedded.recipe(name))
    load = "import sys; from lib.engine import vlm; vlm.load('reference', device='cpu'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True).stdout.split()
    assert "lib.engine.vlm" in loaded
    assert not [name for name in loaded if name.startswith(("lib.engine.derived", *digests.DERIVING["lib.engine.vlm"]))]


@pytest.mark.parametrize(
    "source, names",
    [
        ("import lib.run", ["lib.run"]),
        ("def f():\n    from lib.engine import vlm", ["lib.engine", "lib.engine.vlm"]),
        ("from . import places", ["lib", "lib.places"]),
        ("from .engine.vlm import load", ["lib.engine.vlm", "lib.engine.vlm.load"]),
        ("import library, numpy\nfrom os import path", []),
        ("%matplotlib inline\n!ls\nfrom lib import errors", ["lib", "lib.errors"]),
    ],
)
def test_imports_are_found_wherever_they_stand(source, names):
    assert digests.imports(source, "lib") == names


@pytest.mark.parametrize(
    "one, other, equal",
    [
        ("x = 1  # one", "x = (1)", True),
        ('def f():\n    """Doc."""\n    return 1', "def f(): return 1", True),
        ('x = "a" f"{y}b" "c"', 'x = f"a{y}bc"', True),
        ('x = f"{y:}"', 'x = f"{y}"', True),
        ('x = u"a"', "x = 'a'", True),
        ("x = 1", "x = 2", False),
        ("x = 1", "x = True", False),
        ("x = 1.0", "x = 1", False),
        ("x = None", "x = []", False),
        ("return_ = f(a)", "return_ = f(*a)", False),
    ],
)
def test_trees_are_compared_not_texts(one, other, equal):
    assert (digests.tree_digest(one) == digests.tree_digest(other)) is equal


def test_cells_that_set_up_a_machine_do_not_count():
    cell = nbformat.v4.new_code_cell("%pip install x", metadata={"tags": ["colab"]})
    rest = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("1 + 1")]
    assert digests.cells([cell, *rest]) == digests.cells(rest)
    assert digests.cells(rest[:1]) != digests.cells(rest)
    for path in NOTEBOOKS:
        first = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        assert digests.sets_up(first), path
