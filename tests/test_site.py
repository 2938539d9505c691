"""The HTML edition: complete, self-contained, and made of whatever is there."""

import re

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from records import file_run

from lib import files, places
from lib.analysis.statistics import Estimate
from lib.artifact import figures, findings, ledger
from lib.artifact.site import gallery, matrix, prose
from lib.artifact.site.__main__ import main
from lib.engine import checkpoints
from lib.engine.embedded import DEFAULT
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


def links_of(page) -> list[str]:
    return re.findall(r'(?:href|src)="([^"#]+)', page.read_text())


def claim(model: str, value: float) -> None:
    row = ledger.row("strip_code", Estimate(value, value - 0.1, value + 0.1, 9), "02_x", "cell")
    file_run(places.record(), model, "02_x", lambda folder: ledger.record(model, [row], "02_x", 0))


def curve(folder) -> None:
    figure, _ = figures.panels()
    figures.save(figure, "01-curve", pd.DataFrame({"x": [1]}))
    plt.close(figure)


def site(folder) -> None:
    """Without the page that needs models to answer; `test_playable` has it."""
    main([str(folder), "--no-edits"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "out"))
    return tmp_path / "site"


def test_index_links_all_there_is_and_nothing_outside(folder):
    executed("reference", "01_scene_generation", "as printed <here>", curve)
    executed("mine", "09_gone", "another")
    claim("reference", 0.9), claim("mine", 0.2)
    site(folder)
    index = (folder / "index.html").read_text()
    wanted = {"reference/01_scene_generation.html", "mine/09_gone.html", "reference/index.html", "mine/index.html"}
    assert wanted | {"reference/card.html", "docs/RULES.html"} <= set(links_of(folder / "index.html"))
    for page in folder.rglob("*.html"):
        inside = [link for link in links_of(page) if not re.match("https?:|data:|mailto:", link)]
        if page.stem[:2].isdigit():
            continue  # an executed notebook
        assert [link for link in inside if not (page.parent / link).is_file()] == [], page
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', page.read_text())
    assert "figures/01-curve.png" in links_of(folder / "reference/index.html")
    assert "Results of mine are from models that are not part of this project" in index
    assert "docs/rivals.svg" in links_of(folder / "index.html") and 'id="run"' in index and "make test" in index
    page = (folder / "reference/01_scene_generation.html").read_text()
    assert "as printed &lt;here&gt;" in page and "../index.html" in page
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', page)


def test_the_matrix_puts_models_side_by_side(folder):
    executed("reference", "01_scene_generation", "x")
    claim("reference", 0.9), claim("mine", 0.2)
    site(folder)
    index = (folder / "index.html").read_text()
    cells = re.findall(r'<td data-label="(\w+)" title="([^"]+)">(.*?)</td>', index, flags=re.S)
    assert [(model, full) for model, full, _ in cells] == [
        ("reference", "all: 0.90 [0.80, 1.00] reproduced"),
        ("mine", "all: 0.20 [0.10, 0.30] not reproduced"),
    ]
    for letter, (_, _, shown) in zip("RN", cells, strict=True):
        assert f'class="chip {letter}"' in shown and re.search(rf">{letter}\s*</abbr>", shown)  # colour and letter
    assert "0.20<br>[0.10, 0.30]" in cells[1][2]
    assert "<td" in (folder / "mine/index.html").read_text()


def test_several_rows_of_a_metric_are_told_in_one_cell():
    rows = [
        {"metric": "strip_code", "value": v, "low": v - 0.1, "high": v + 0.1, "verdict": verdict, "axis": axis}
        for v, verdict, axis in ((0.0, "not reproduced", "left-right"), (0.9, "reproduced", "above-below"))
    ]
    cell = matrix.cell("x", rows)
    assert [(chip["letter"], chip["count"]) for chip in cell["chips"]] == [("R", 1), ("N", 1)]
    assert (cell["value"], cell["interval"]) == ("0.00 to 0.90", "[-0.10, 1.00]")
    assert cell["full"].splitlines()[0] == "left-right: 0.00 [-0.10, 0.10] not reproduced"
    nothing = matrix.cell("x", [{**rows[0], "value": None, "low": None, "high": None, "verdict": "not testable"}])
    assert nothing["chips"][0]["letter"] == "T" and nothing["value"] == ""
    assert matrix.cell("x", [])["chips"] == []


def test_a_ledger_is_shown_metric_by_metric_with_a_line_per_place():
    estimate = Estimate(0.9, 0.8, 1.0, 9)
    places_of = [("strip_code", "squares"), ("probe_seen_entities", "shapes"), ("strip_code", "objects")]
    ledgers = [ledger.row(metric, estimate, "02_x", "cell", setting=setting) for metric, setting in places_of]
    found = {each["metric"]: [line["where"] for line in each["lines"]] for each in matrix.by_metric(ledgers)}
    assert found == {"probe_seen_entities": ["shapes"], "strip_code": ["squares", "objects"]}
    assert matrix.by_metric(ledgers)[1]["lines"][0] | {"n": 0} == {
        "where": "squares", "value": "0.90 [0.80, 1.00]", "n": 0, "verdict": "reproduced"
    }  # fmt: skip
    assert matrix.by_metric([]) == []


def test_the_claims_are_those_of_the_rules():
    rules = (places.ROOT / "docs/RULES.md").read_text()
    assert [
        f"{name} {claim}" for name, claim in matrix.CLAIMS.items() if " " not in name and f"{name} {claim}" not in rules
    ] == []
    assert set(matrix.CLAIMS) == {measure.claim for measure in ledger.MEASURES.values()}
    verdicts = {
        m.verdict(low, high, n) for m in ledger.MEASURES.values() for low, high, n in ((-9, -8, 999), (8, 9, 999))
    }
    assert verdicts | {m.too_few for m in ledger.MEASURES.values()} == set(matrix.LETTERS)


def test_the_finding_comes_first_and_in_the_readmes_words(folder):
    executed("reference", "01_scene_generation", "x")
    site(folder)
    index = (folder / "index.html").read_text()
    short = prose.first_sentences(prose.readme()["What we found"])
    assert short and all(index.index(each) < index.index("<nav") for each in short if not re.search("[`*<>&]", each))
    assert "arxiv.org/abs/2603.22278" in index


def test_what_readme_counts_in_words_is_so():
    readme, words = (
        " ".join((places.ROOT / "README.md").read_text().split()),
        ["", "", "", "three", "four", "five", "six"],
    )
    assert f"In {words[len(findings.SHOWN)]} small models" in readme
    assert f"`{DEFAULT}` was trained {words[len(checkpoints.seeds(DEFAULT))]} times" in readme
    assert (
        f"{words[len(findings.SOURCES)].capitalize()} things could tell a model which object is on the left" in readme
    )


def test_links_of_the_prose_lead_to_pages_or_are_plain_text(tmp_path):
    text = "[rules](RULES.md#x) [code](../lib/run.py) [home](../README.md) [out](https://a.b/)"
    text += " ![p](../outputs/m/figures/1.png) an <unk> or <image> **here**"
    page = prose.html(text, places.ROOT / "docs/RUNNING.md", tmp_path / "docs/RUNNING.html", tmp_path)
    assert 'href="RULES.html#x"' in page and 'href="../index.html"' in page and 'href="https://a.b/"' in page
    assert ">code<" not in page and "code" in page and "<img" not in page
    assert "an &lt;unk&gt; or &lt;image&gt; <strong>here</strong>" in page


def test_every_figure_is_made_by_a_notebook_and_has_a_caption():
    sources = "".join(path.read_text() for path in places.NOTEBOOKS.glob("[0-9]*.ipynb"))
    assert [name for name in gallery.CAPTIONS if f'\\"{name}\\"' not in sources] == []
    saved = set(re.findall(r'\\"(\d\d-[a-z-]+)\\"', sources))
    assert saved and [name for name in sorted(saved) if not gallery.caption(name)] == []
    every = (gallery.CAPTIONS | gallery.APPENDIX).values()
    assert all(caption.count(". ") == 0 and caption.endswith(".") for caption in every)


def test_pieces_that_are_missing_are_left_out(folder, capsys):
    executed("reference", "01_scene_generation", "x")
    site(folder)
    index = (folder / "index.html").read_text()
    assert "No ledger yet" in index and 'id="verdicts"' not in index and 'id="figures"' not in index
    assert "edits.html" not in index
    own = (folder / "reference/index.html").read_text()
    assert "No ledger yet" in own and "<h2>Figures" not in own
    executed("reference", "02_x", "y", curve)
    (places.record("reference") / "figures/01-curve.png").write_bytes(b"x")  # not what the manifest says
    (places.record("reference") / "figures/02-stray.png").write_bytes(b"x")
    (places.record("reference") / "notebooks/.02_x.7.tmp.ipynb").write_text('{"cells": [')
    site(folder)  # over its own earlier edition
    assert "01-curve.png: it is not what the run wrote" in capsys.readouterr().out
    assert "stray" not in (folder / "index.html").read_text() and not list(folder.rglob("*.png"))


def test_nothing_to_show_and_nothing_overwritten(folder):
    with pytest.raises(UserError, match="make run"):
        site(folder)
    executed("reference", "01_scene_generation", "x")
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match="choose another folder"):
        site(folder)
    assert (folder / "thesis.tex").exists()
    (folder / "index.html").touch()  # somebody's own site is not ours to replace
    with pytest.raises(UserError, match="choose another folder"):
        site(folder)
    assert (folder / "thesis.tex").exists()


def test_an_edition_that_was_cut_short_is_made_again(folder):
    executed("reference", "01_scene_generation", "x")
    site(folder)
    (folder / "index.html").unlink()
    (folder / "reference/left_over.html").touch()
    site(folder)
    assert (folder / "index.html").is_file() and not (folder / "reference/left_over.html").exists()
