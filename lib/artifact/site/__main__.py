"""`python -m lib.artifact.site`: write the HTML edition of outputs/ into site/ (or the folder given).

Pieces that are missing are left out. Nothing is computed but the answers of the page one can play with (`playable`;
under a minute on one core), which `--no-edits` leaves out.
"""

import argparse
import re
import shutil
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader, select_autoescape
from nbconvert import HTMLExporter

from lib import files, places
from lib.artifact import ledger, record, storage
from lib.artifact.notebooks import Notebook, load_notebook
from lib.artifact.site import gallery, matrix, playable, prose
from lib.engine.checkpoints import known_models, shipped
from lib.engine.embedded import DEFAULT
from lib.errors import UserError, cli
from lib.places import show

FOLDER = places.ROOT / "site"
MARKER = ".html-edition"  # a folder with this file in it was made here and may be replaced
HERE = Path(__file__).parent
OUTSIDE = re.compile(r'<script[^>]*\bsrc="https?://[^>]*>\s*</script>')  # require.js and MathJax: not needed here
BACK = '<nav class="back"><a href="{}">All notebooks, figures and claims</a></nav>'
PHONE = """<style>
  .back { font: 16px "Helvetica Neue", Arial, sans-serif; margin: 1em; }
  .back a { color: #005a8e; }
  .jp-RenderedText pre { word-break: normal; overflow-wrap: anywhere; }
  .jp-RenderedHTMLCommon, .jp-OutputArea-output { overflow-x: auto; max-width: 100%; }
  .jp-Notebook img { max-width: 100%; height: auto; }
  @media (max-width: 640px) {
    .jp-InputPrompt, .jp-OutputPrompt { display: none; }
    body.jp-Notebook { padding: 0 4px; }
    .jp-OutputArea-output img { max-width: 600px; } /* scrolls sideways: shrunk further, its words cannot be read */
  }
</style>"""


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.artifact.site", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: site/")
    parser.add_argument("--no-edits", action="store_true", help="without the page one can play with")
    chosen = parser.parse_args(argv)
    folder = chosen.folder
    places.use_published()
    if not record.copies():
        raise UserError(f"{show(places.record())} holds no executed notebook: `make run` makes them")
    make_empty(folder)
    sources = {path.stem: load_notebook(path) for path in places.NOTEBOOKS.glob("[0-9]*.ipynb")}
    for drawing in (places.ROOT / "docs").glob("*.svg"):
        files.write_bytes(folder / "docs" / drawing.name, drawing.read_bytes())
    models = [model_pages(name, folder, sources) for name in record.models()]
    documents = [document_page(file, folder) for file in prose.documents()]
    edits = None if chosen.no_edits else playable.write(folder / "edits.html")
    index = index_page(folder, models, documents, edits is not None)
    print(f"{len(record.copies())} notebooks; open {show(index)}")


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


def rendered(template: str, page: Path, **content) -> Path:
    """Write a page from its template."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape())
    return files.write_bytes(page, environment.get_template(template).render(**content).encode())


def index_page(folder: Path, models: list[dict], documents: list[dict], edits: bool) -> Path:
    """The first page: finding, verdicts, main figures, models."""
    page, readme = folder / "index.html", prose.readme()
    parts = {name: prose.html(text, places.ROOT / "README.md", page, folder) for name, text in readme.items()}
    finding = readme.get("What we found", "")
    return rendered(
        "index.html",
        page,
        short=[prose.html(each, places.ROOT / "README.md", page, folder) for each in prose.first_sentences(finding)],
        lead=parts.get("lead", ""),
        finding=parts.get("What we found", ""),
        limits=parts.get("Limits", ""),
        edits=edits,
        verdicts=matrix.rows({model["name"]: model["rows"] for model in models if model["rows"]}),
        letters=matrix.LETTERS,
        pictures=gallery.pictures(DEFAULT),
        default=DEFAULT,
        models=models,
        documents=documents,
        page_of={Path(each["href"]).stem: each["href"] for each in documents},
        outsiders=[name for name in record.models() if name not in shipped()],
        commands=parts.get("Two commands", ""),
        commit=(storage.commit() or "unknown")[:12],
        versions=storage.versions(),
    )


def model_pages(name: str, folder: Path, sources: dict[str, Notebook]) -> dict:
    """Write one model's pages and pictures; what the index says of it."""
    notebooks = []
    for path in record.copies():
        if path.parents[1].name == name:
            notebook_page(path, folder / name / f"{path.stem}.html")
            known = sources.get(path.stem)
            notebooks.append({"href": f"{path.stem}.html", "title": known.title if known else path.stem})
    pictures = []
    for picture in record.figures(name):
        beside = [picture.with_suffix(kind) for kind in (".pdf", ".csv")]
        for file in (picture, *beside):
            if file.is_file():
                files.write_bytes(folder / name / "figures" / file.name, file.read_bytes())
        more = [{"href": f"figures/{file.name}", "kind": file.suffix[1:]} for file in beside if file.is_file()]
        caption = gallery.caption(picture.stem)
        pictures.append({"src": f"figures/{picture.name}", "id": picture.stem, "more": more, "caption": caption})
    rows = record.rows(name)
    content = {
        "name": name,
        "where": known_models().get(name, "a folder of the user's own"),
        "card": card(name, folder),
        "notebooks": notebooks,
        "figures": pictures,
        "rows": rows,
        "metrics": matrix.by_metric(rows),
    }
    rendered("model.html", folder / name / "index.html", open=ledger_claims(), letters=matrix.LETTERS, **content)
    return content


def notebook_page(path: Path, page: Path) -> None:
    """An executed notebook as one HTML file, pictures inside, nothing fetched from elsewhere."""
    html, _ = HTMLExporter(embed_images=True).from_notebook_node(nbformat.read(path, as_version=4))
    html = OUTSIDE.sub("", html).replace("</head>", f"{PHONE}</head>", 1)
    html = re.sub(r"<body[^>]*>", lambda found: found[0] + BACK.format("../index.html"), html, count=1)
    files.write_bytes(page, html.encode())


def card(name: str, folder: Path) -> str | None:
    """The page of a shipped model's card."""
    source, page = places.MODELS / name / "README.md", folder / name / "card.html"
    if not source.is_file():
        return None
    text = re.sub(r"\A---\n.*?\n---\n", "", source.read_text("utf-8"), flags=re.S)  # metadata for model hubs
    body = prose.html(text, source, page, folder)
    rendered("prose.html", page, title=f"Model card: {name}", body=body, back=BACK.format("../index.html"))
    return page.name


def document_page(file: Path, folder: Path) -> dict:
    """A page of docs/; what the index says of it."""
    page, title = folder / "docs" / f"{file.stem}.html", prose.title(file)
    body = prose.html(file.read_text("utf-8"), file, page, folder)
    rendered("prose.html", page, title=title, body=body, back=BACK.format("../index.html"))
    return {"href": f"docs/{page.name}", "title": title}


def ledger_claims() -> list[str]:
    return list(dict.fromkeys(measure.claim for measure in ledger.MEASURES.values()))


if __name__ == "__main__":
    with cli():
        main()
