"""The floors of the library (pyproject.toml, tool.importlinter): no folder imports from a floor above it."""

from importlinter.cli import lint_imports

from lib.places import ROOT


def test_folders_import_only_from_the_floors_below(capsys):
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out
