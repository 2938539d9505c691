"""Benchmarks, run by hand: `python -m benchmarks.sweeps`. They time the engine and are no part of the record."""

import lib  # noqa: F401  before torch, which reads how OpenMP's threads wait when it is loaded
