"""Files written whole or not at all, and their digests."""

import errno
import hashlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lib.errors import UserError
from lib.places import show


@contextmanager
def atomic(path):
    """Yield a temporary path beside `path` and rename it to `path` at the end; on any error drop it.

    The suffix is kept, so writers that go by it (matplotlib, nbformat) work. Failing to write is a UserError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave a whole name on half a file
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself is unusable: the error above says so


@contextmanager
def locked(path, doing: str = ""):
    """Hold `path` against other processes that also ask for it; for what is read, changed and written back.

    doing: what a process that has to wait is told about this one.
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    holder = path.with_name(f".{path.name}.holder.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            who = holder.read_text("utf-8") if holder.is_file() else "another process"
            print(f"waiting for {who}, which holds {show(path)}", file=sys.stderr, flush=True)
            lock.acquire()
        if doing:
            holder.write_text(f"process {os.getpid()} ({doing})", "utf-8")
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def unwritable(path, error: OSError) -> UserError:
    """The sentence for an operating-system error met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left to write {show(path)}: free some and run again, nothing is lost")
    why = error.strerror or error
    return UserError(
        f"cannot write {show(path)} ({why}): make its folder writable or set DUAL_OUTPUTS to another folder"
    )


def write_bytes(path, content: bytes) -> Path:
    """Write one file atomically."""
    path = Path(path)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_json(value, path) -> Path:
    """Write JSON atomically, see `dump_json`."""
    return write_bytes(path, dump_json(value))


def dump_json(value) -> bytes:
    """Readable and stable; numpy and pandas scalars become plain ones. NaN is refused: it is not JSON."""
    plain = lambda x: x.tolist() if hasattr(x, "tolist") else str(x)  # noqa: E731
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=plain) + "\n").encode()


def files_digest(files: dict[str, Path]) -> str:
    """One digest of several files under stated names."""
    lines = [f"{name} {file_digest(path)}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
