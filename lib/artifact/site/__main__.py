"""`python -m lib.artifact.site`: write the HTML edition of outputs/ into site/ (or the folder given).

Pieces that are missing are left out; nothing is computed.
"""

import argparse
import re
import shutil
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader, select_autoescape
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from lib import files, places
from lib.artifact import ledger, record, storage
from lib.artifact.notebooks import Notebook, load_notebook
from lib.engine.checkpoints import known_models, shipped
from lib.errors import UserError, cli
from lib.places import show

FOLDER = places.ROOT / "site"
MARKER = ".html-edition"  # a folder with this file in it was made here and may be replaced
HERE = Path(__file__).parent
OUTSIDE = re.compile(r'<script[^>]*\bsrc="https?://[^>]*>\s*</script>')  # require.js and MathJax: not needed here
BACK = '<nav style="font-family: sans-serif; margin: 1em 2em"><a href="{}">All notebooks, figures and claims</a></nav>'


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.artifact.site", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: site/")
    folder = parser.parse_args(argv).folder
    places.use_published()
    if not record.copies():
        raise UserError(f"{show(places.record())} holds no executed notebook: `make run` makes them")
    make_empty(folder)
    sources = {path.stem: load_notebook(path) for path in places.NOTEBOOKS.glob("[0-9]*.ipynb")}
    models = [model_pages(name, folder, sources) for name in record.models()]
    summary = record.summary()
    page = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape()).get_template("index.html")
    text = page.render(
        models=models,
        claims=ledger_claims(),
        summary=frame(summary) if summary.shape[1] > 4 else None,
        outsiders=[name for name in record.models() if name not in shipped()],
        commit=storage.commit(),
        versions=storage.versions(),
    )
    files.write_bytes(folder / "index.html", text.encode())
    print(f"{len(record.copies())} notebooks; open {show(folder / 'index.html')}")


def make_empty(folder: Path) -> None:
    """Remove an earlier edition, whole or cut short, and nothing else; the marker is written before any page."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UserError(
            f"{show(folder)} holds something that is not an HTML edition made here: choose another folder or empty it"
        )
    try:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name != MARKER:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise files.unwritable(folder, error) from error
    files.write_bytes(folder / MARKER, b"")


def model_pages(name: str, folder: Path, sources: dict[str, Notebook]) -> dict:
    """Write one model's pages and pictures; what the index says of it."""
    notebooks = []
    for path in record.copies():
        if path.parents[1].name == name:
            notebook_page(path, folder / name / f"{path.stem}.html")
            known = sources.get(path.stem)
            notebooks.append({"href": f"{name}/{path.stem}.html", "title": known.title if known else path.stem})
    pictures = []
    for picture in record.figures(name):
        for file in (picture, picture.with_suffix(".pdf"), picture.with_suffix(".csv")):
            if file.is_file():
                files.write_bytes(folder / name / "figures" / file.name, file.read_bytes())
        pictures.append({"src": f"{name}/figures/{picture.name}", "id": picture.stem})
    return {
        "name": name,
        "where": known_models().get(name, "a folder of the user's own"),
        "card": card(name, folder),
        "notebooks": notebooks,
        "figures": pictures,
        "claims": claims(name),
    }


def notebook_page(path: Path, page: Path) -> None:
    """An executed notebook as one HTML file, pictures inside, nothing fetched from elsewhere."""
    html, _ = HTMLExporter(embed_images=True).from_notebook_node(nbformat.read(path, as_version=4))
    html = OUTSIDE.sub("", html)
    html = re.sub(r"<body[^>]*>", lambda found: found[0] + BACK.format("../index.html"), html, count=1)
    files.write_bytes(page, html.encode())


def card(name: str, folder: Path) -> str | None:
    """The page of a shipped model's card."""
    source = places.MODELS / name / "README.md"
    if not source.is_file():
        return None
    text = re.sub(r"\A---\n.*?\n---\n", "", source.read_text("utf-8"), flags=re.S)  # metadata for model hubs
    page = Environment(loader=FileSystemLoader(HERE)).get_template("card.html")
    html = page.render(name=name, body=markdown2html(text), back=BACK.format("../index.html"))
    files.write_bytes(folder / name / "card.html", html.encode())
    return f"{name}/card.html"


def claims(name: str) -> str | None:
    """The table of a model's claims as HTML; None where it has no ledger."""
    rows = record.rows(name)
    return frame(ledger.table(rows)) if rows else None


def ledger_claims() -> list[str]:
    return list(dict.fromkeys(measure.claim for measure in ledger.MEASURES.values()))


def frame(table) -> str:
    return table.to_html(index=False, border=0, classes="claims", escape=True)


if __name__ == "__main__":
    with cli():
        main()
