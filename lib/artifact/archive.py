"""`python -m lib.artifact.archive [file]`: everything in the last commit as one ZIP file for an archive such as Zenodo.

Sources, embedded models, published outputs, and SHA256SUMS with a line per file, which `sha256sum --check SHA256SUMS`
reads in the unpacked folder. The same commit always gives the same files.
"""

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from lib import files
from lib.errors import UserError, cli
from lib.places import ROOT, show

SUMS = "SHA256SUMS"
NAME = "dual-mechanisms"


def write(file: Path) -> int:
    """Write the archive; returns how many files of the project are in it. What is not committed is not in it."""
    with files.atomic(file) as temporary:
        git("archive", "--format=zip", f"--prefix={NAME}/", f"--output={temporary.resolve()}", "HEAD")
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            lines = [f"{digest(archive.read(m))}  {m.filename.removeprefix(f'{NAME}/')}\n" for m in members]
            sums = zipfile.ZipInfo(f"{NAME}/{SUMS}", members[0].date_time)
            sums.external_attr = 0o644 << 16
            archive.writestr(sums, "".join(lines), zipfile.ZIP_DEFLATED)
    return len(members)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git(*words: str) -> str:
    """What git says in this project's folder; a UserError where there is no repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or str(error)
        raise UserError(f"an archive is made from a git repository: {why.strip()}") from error
    return done.stdout


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.artifact.archive", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help=f"default: {NAME}-<commit>.zip in the project's folder")
    file = parser.parse_args(argv).file or ROOT / f"{NAME}-{git('rev-parse', '--short=12', 'HEAD').strip()}.zip"
    if git("status", "--porcelain").strip():
        print("warning: there are changes that are not committed; they are not in the archive", file=sys.stderr)
    count = write(file)
    print(f"{show(file)}: {count} files, {file.stat().st_size / 1e6:.0f} MB; SHA-256 {files.file_digest(file)}")


if __name__ == "__main__":
    with cli():
        main()
