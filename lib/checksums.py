"""The table of checksums in data/README.md (`python -m lib.checksums` writes it anew; a test compares)."""

from lib.errors import UserError, cli
from lib.paths import DATA, file_digest, write_bytes

README = DATA / "README.md"
START, END = "<!-- checksums -->\n", "<!-- end of checksums -->\n"


def table() -> str:
    """One line per file of data/, hidden files and the README itself left out."""
    files = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file())
    listed = [f for f in files if f != README.name and not any(part.startswith(".") for part in f.split("/"))]
    lines = [f"| {f} | {(DATA / f).stat().st_size} | `{file_digest(DATA / f)}` |" for f in listed]
    return "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *lines]) + "\n"


def main() -> None:
    text = README.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        raise UserError(f"{README} has lost the lines {START.strip()} and {END.strip()}: put them back.")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    write_bytes(README, (before + START + table() + END + after).encode())


if __name__ == "__main__":
    with cli():
        main()
