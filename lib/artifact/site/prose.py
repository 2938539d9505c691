"""README and docs/ as pages of the HTML edition: their sections, and links that lead to pages of the edition."""

import os
import re
from html import escape
from pathlib import Path

from nbconvert.filters import markdown2html

from lib.engine.embedded import DEFAULT
from lib.places import ROOT

LINK = re.compile(r'<a href="(?P<to>[^"]*)"[^>]*>(?P<text>.*?)</a>', re.S)
TAG = re.compile(r"</?(\w+)[^<>]*>")
TAGS = set(
    "a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr img li ol p pre span strong "
    "table tbody td th thead tr ul".split()
)
PICTURE = re.compile(r'<img src="(?P<to>[^"]*)"[^>]*>')


def readme() -> dict[str, str]:
    """README's sections in Markdown: heading -> text; what stands above the first heading is called `lead`."""
    file = ROOT / "README.md"
    if not file.is_file():  # installed as a package
        return {}
    lead, *rest = re.split(r"(?m)^## ", file.read_text("utf-8"))
    split = (part.partition("\n") for part in rest)
    return {"lead": re.sub(r"\A# .*\n", "", lead)} | {heading.strip(): text for heading, _, text in split}


def first_sentences(text: str) -> list[str]:
    """The sentences printed bold at the start of a list's items: a section in short."""
    return re.findall(r"(?m)^[-*] \*\*(.+?)\*\*", text)


def documents() -> list[Path]:
    return sorted((ROOT / "docs").glob("*.md"))


def title(file: Path) -> str:
    """A page's first heading."""
    found = re.search(r"(?m)^# (.+)$", file.read_text("utf-8"))
    return found[1] if found else file.stem


def html(markdown: str, source: Path, page: Path, site: Path) -> str:
    """Markdown as HTML; wide tables scroll by themselves, a picture is a link to itself.

    source: the file it is from. page: where it will be shown, in the folder `site`; links between files of the project
    become links between pages, and a link to what is not in the edition becomes plain text.
    """

    def target(to: str) -> str | None:
        path, _, mark = to.partition("#")
        place = in_site(os.path.relpath((source.parent / path).resolve(), ROOT)) if path else None
        if place is None or not (site / place).is_file() and not is_document(place):
            return None
        return os.path.relpath(site / place, page.parent) + (f"#{mark}" if mark else "")

    def link(found: re.Match) -> str:
        to = found["to"]
        if to.startswith(("http://", "https://", "#")):
            return f'<a href="{to}">{found["text"]}</a>'
        leads = target(to)
        return f'<a href="{leads}">{found["text"]}</a>' if leads else found["text"]

    def picture(found: re.Match) -> str:
        leads = target(found["to"])
        return f'<a href="{leads}">{found[0].replace(found["to"], leads)}</a>' if leads else ""

    def tag(found: re.Match) -> str:  # <unk> in a sentence is a word of it; browsers take <image> for a picture
        return found[0] if found[1] in TAGS else escape(found[0], quote=False)

    text = PICTURE.sub(picture, LINK.sub(link, TAG.sub(tag, markdown2html(markdown))))
    text = text.replace('<a class="anchor-link"', '<a hidden class="anchor-link"')
    return text.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def in_site(path: str) -> str | None:
    """Where the edition has a file of the project; None where it has no place for it."""
    parts = Path(path).parts
    match parts:
        case ("README.md",):
            return "index.html"
        case ("docs", name):
            return f"docs/{Path(name).stem}.html" if name.endswith(".md") else f"docs/{name}"
        case ("notebooks", name):
            return f"{DEFAULT}/{Path(name).stem}.html"
        case ("outputs", model, "notebooks", name):
            return f"{model}/{Path(name).stem}.html"
        case ("outputs", model, "figures", name):
            return f"{model}/figures/{name}"
        case ("data", "models", model, "README.md"):
            return f"{model}/card.html"
    return None


def is_document(place: str) -> bool:
    """Pages of docs/ link each other before all of them are written."""
    return place == "index.html" or place in {f"docs/{file.stem}.html" for file in documents()}
