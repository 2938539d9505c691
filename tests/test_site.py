"""The HTML edition: complete, self-contained, and made of whatever is there."""

import re

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from records import file_run

from lib import files, places
from lib.analysis.statistics import Estimate
from lib.artifact import figures, ledger
from lib.artifact.site.__main__ import main
from lib.errors import UserError


def executed(model: str, name: str, output: str, also=lambda folder: None) -> None:
    """File a run with an executed notebook; `also` writes more results."""
    shown = nbformat.v4.new_output("stream", text=output)
    cell = nbformat.v4.new_code_cell("print()", outputs=[shown], execution_count=1, id="a")
    content = nbformat.writes(nbformat.v4.new_notebook(cells=[cell])).encode()

    def write(folder):
        files.write_bytes(folder / f"notebooks/{name}.ipynb", content)
        also(folder)

    file_run(places.record(), model, name, write)


def claim(model: str, value: float) -> None:
    row = ledger.row("strip_effect", Estimate(value, value - 0.1, value + 0.1, 9), "02_x", "cell")
    file_run(places.record(), model, "02_x", lambda folder: ledger.record(model, [row], "02_x", 0))


def curve(folder) -> None:
    figure, _ = figures.panels()
    figures.save(figure, "01-curve", pd.DataFrame({"x": [1]}))
    plt.close(figure)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "out"))
    return tmp_path / "site"


def test_index_links_all_there_is_and_nothing_outside(folder):
    executed("reference", "01_scene_generation", "as printed <here>", curve)
    executed("mine", "09_gone", "another")
    claim("reference", 0.9), claim("mine", 0.2)
    main([str(folder)])
    index = (folder / "index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"#]+)"', index)
    assert [link for link in links if link.startswith("http")] == ["https://arxiv.org/abs/2603.22278"]
    missing = [link for link in links if not link.startswith("http") and not (folder / link).is_file()]
    assert missing == []
    wanted = {"reference/01_scene_generation.html", "mine/09_gone.html", "reference/figures/01-curve.png"}
    assert wanted | {"reference/card.html"} <= set(links)
    assert "0.90 [0.80, 1.00] reproduced" in index and "0.20 [0.10, 0.30] not reproduced" in index  # side by side
    assert "Results of mine are from models that are not part of this project" in index
    page = (folder / "reference/01_scene_generation.html").read_text()
    assert "as printed &lt;here&gt;" in page and "../index.html" in page
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', page)


def test_pieces_that_are_missing_are_left_out(folder, capsys):
    executed("reference", "01_scene_generation", "x")
    main([str(folder)])
    index = (folder / "index.html").read_text()
    assert "No ledger yet" in index and "Models side by side" not in index and "<h3>Figures" not in index
    executed("reference", "02_x", "y", curve)
    (places.record("reference") / "figures/01-curve.png").write_bytes(b"x")  # not what the manifest says
    (places.record("reference") / "figures/02-stray.png").write_bytes(b"x")
    (places.record("reference") / "notebooks/.02_x.7.tmp.ipynb").write_text('{"cells": [')
    main([str(folder)])  # over its own earlier edition
    assert "01-curve.png: it is not what the run wrote" in capsys.readouterr().out
    assert "stray" not in (folder / "index.html").read_text() and not list(folder.rglob("*.png"))


def test_nothing_to_show_and_nothing_overwritten(folder):
    with pytest.raises(UserError, match="make run"):
        main([str(folder)])
    executed("reference", "01_scene_generation", "x")
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match="choose another folder"):
        main([str(folder)])
    assert (folder / "thesis.tex").exists()
    (folder / "index.html").touch()  # somebody's own site is not ours to replace
    with pytest.raises(UserError, match="choose another folder"):
        main([str(folder)])
    assert (folder / "thesis.tex").exists()


def test_an_edition_that_was_cut_short_is_made_again(folder):
    executed("reference", "01_scene_generation", "x")
    main([str(folder)])
    (folder / "index.html").unlink()
    (folder / "reference/left_over.html").touch()
    main([str(folder)])
    assert (folder / "index.html").is_file() and not (folder / "reference/left_over.html").exists()
