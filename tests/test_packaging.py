"""Versions are written once: environment.yml, constraints.txt and the Makefile agree with pyproject.toml."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lib.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(line) for line in [*PROJECT["dependencies"], *sum(EXTRAS.values(), [])]]
PINS = {
    canonicalize_name(Requirement(line).name): Requirement(line).specifier
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
NEEDED = "torch transformers jupyterlab papermill seaborn matplotlib pillow pandas numpy scikit-learn nbconvert"


def test_the_promised_packages_are_required():
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert set(NEEDED.split()) <= names and "torchvision" not in names
    assert "nbval" in {Requirement(line).name for line in EXTRAS["test"]}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_pins_are_exact_and_in_range(requirement):
    (pin,) = PINS[canonicalize_name(requirement.name)]
    assert pin.operator == "==" and "+" not in pin.version
    assert requirement.specifier.contains(pin.version)


def test_torch_is_the_published_one():
    assert str(PINS["torch"]) == "==2.13.0"


def test_conda_installs_this_project_and_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    # same packages, same versions: conda brings Python and pip, the rest is read from pyproject.toml
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_every_import_of_the_library_is_required():
    provided = {
        "sklearn": "scikit-learn",
        "skimage": "scikit-image",
        "PIL": "pillow",
        "jupyter_client": "ipykernel",
    }
    provided["traitlets"] = "ipykernel"
    names = {canonicalize_name(r.name) for r in REQUIREMENTS}
    for path in (ROOT / "lib").rglob("*.py"):
        for module in re.findall(r"(?m)^\s*(?:from|import) (\w+)[\w.]*(?: import|$| as|,)", path.read_text()):
            if module in sys.stdlib_module_names or module == "lib":
                continue
            assert canonicalize_name(provided.get(module, module)) in names, f"{path.name} imports {module}"


def test_citation_is_well_formed():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"] and citation["license"] == "MIT"
    (paper,) = citation["references"]
    assert paper["url"].endswith("2603.22278") and paper["authors"][0]["family-names"] == "Cui"
    assert "MIT License" in (ROOT / "LICENSE").read_text()


def test_makefile_knows_the_least_python():
    oldest = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])[1]
    assert f"sys.version_info < (3, {oldest})" in (ROOT / "Makefile").read_text()
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11")


def test_an_old_python_is_told_so(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\ncase "$1" in -c) exit 1;; esac\n')
    old.chmod(0o755)
    call = ["make", "run", f"PYTHON={old}", f"VENV={tmp_path}/venv"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "error: Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_calls_make_test():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111 and "make test" in script.read_text()
