"""The one error a reader is meant to see: a sentence that says what is wrong and what to do about it."""

import errno
import os
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """Bad input or a bad environment, told in one sentence with the remedy."""


def unknown(kind: str, name: str, known: Iterable[str], besides: str = "", shown: Iterable[str] = ()) -> UserError:
    """The error for a name that is not among `known`, with the closest known name as a suggestion.

    `besides` names what else would have been accepted; `shown` is listed instead of `known` where that is long.
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known are {', '.join(sorted(shown) or known) or 'none'}{besides}")


@contextmanager
def cli():
    """Around a command's main: a UserError becomes one line on stderr and exit code 2, Ctrl-C code 130. A reader of
    standard output who leaves, as in `... --list | head -1`, is no error; a full disk is one."""
    try:
        try:
            yield
        finally:  # what was printed is written while a failure can still be caught
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        sys.stdout = open(os.devnull, "w")  # or Python fails once more when it flushes at exit
        if error.errno == errno.ENOSPC:
            print("error: no space left to write to: free some and run again, nothing is lost", file=sys.stderr)
            sys.exit(2)
