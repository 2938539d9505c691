"""What a run has computed so far, for the next one when it is killed.

A step is a function that takes seconds or minutes and returns tables. `resumed` computes it once, writes its tables,
and gives them back when the run is started again. Steps may hold further steps: a sweep holds its batches, so that a
kill loses the batch in work and not the sweep. Once a step is complete, its own tables replace those of its parts.

Tables come back bit by bit as they were. Nothing is kept or read unless somebody has said where, by `kept_in`: the
runner does (lib/artifact/execution.py), with a key of everything that a run depends on. JupyterLab does not, so that
what is run by hand is always computed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from lib import files

PARTS = "DUAL_PARTS"  # in the environment of a run: the folder of its parts
SHORT = 0.1  # seconds; a step that takes less is computed again rather than kept

_open: list[str] = []  # the steps that are being computed, the outermost first
_asked: Counter[tuple[str, ...]] = Counter()  # how often each step was asked for


@contextmanager
def kept_in(home: Path, key: str) -> Iterator[None]:
    """Keep the parts of what is computed meanwhile, in this process and in those it starts, in `home`.

    Parts that were kept under another key are removed. All are when the block ends well; they stay when it does not.
    """
    for other in home.glob("*"):
        if other.name != key:
            shutil.rmtree(other, ignore_errors=True)
    _asked.clear()
    os.environ[PARTS] = str(home / key)
    try:
        yield
    finally:
        del os.environ[PARTS]
    shutil.rmtree(home, ignore_errors=True)


def resumed(name: str, function: Callable, *arguments):
    """What `function(*arguments)` returns, a table or a tuple of tables; or what it returned before the run was killed.

    name: says what is computed, with whatever tells it from other steps. A step of the same name that is asked for
    again is another step: runs of one key ask for the same steps in the same order.
    """
    root = os.environ.get(PARTS)
    if not root:
        return function(*arguments)
    asked = (*_open, re.sub(r"[^\w.-]+", "_", name))
    _asked[asked] += 1
    own = f"{asked[-1]}-{_asked[asked]}"
    folder = Path(root, _machine(), *_open, own)  # of the parts of this step
    file = folder.with_name(f"{own}.json")
    if (kept := _read(file)) is not None:
        return kept
    _open.append(own)
    started = time.monotonic()
    try:
        result = function(*arguments)
    finally:
        _open.pop()
    if time.monotonic() - started >= SHORT:
        try:
            files.write_bytes(file, packed(result))
        except TypeError:  # would not come back as it is: the result is right, and after a kill it is computed again
            return result
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _machine() -> str:
    """What the numbers are computed on: results of another kind of GPU are not mixed with those of this one."""
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_available()
    return re.sub(r"\W+", "_", torch.cuda.get_device_name() if gpu else platform.machine())


def packed(result: pd.DataFrame | tuple[pd.DataFrame, ...]) -> bytes:
    """One table or a tuple of them as JSON from which the very same is read; a TypeError where that is not possible.

    Numbers are written in digits that give the same bits again.
    """
    tables = [result] if isinstance(result, pd.DataFrame) else list(result)
    columns = [[[name, str(own.dtype), own.tolist()] for name, own in table.items()] for table in tables]
    content = json.dumps({"one": isinstance(result, pd.DataFrame), "tables": columns}).encode()
    try:
        for table, again in zip(tables, _tables(content), strict=True):
            pd.testing.assert_frame_equal(table, again, check_exact=True)
    except (AssertionError, ValueError) as error:
        raise TypeError(f"a step must return tables of plain columns, rows numbered from 0: {error}") from error
    return content


def unpacked(content: bytes) -> pd.DataFrame | tuple[pd.DataFrame, ...]:
    """What was `packed`; a ValueError where the content is cut short."""
    tables = _tables(content)
    return tables[0] if json.loads(content)["one"] else tuple(tables)


def _tables(content: bytes) -> list[pd.DataFrame]:
    tables = json.loads(content)["tables"]
    return [pd.DataFrame({name: pd.Series(values, dtype=kind) for name, kind, values in table}) for table in tables]


def _read(file: Path):
    """The tables in a file; None where there is none, or the disk has lost a piece of it."""
    try:
        return unpacked(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
