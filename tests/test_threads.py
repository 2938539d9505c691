"""How OpenMP's threads wait is set before torch is loaded, which reads it; the user's own setting wins."""

import os
import subprocess
import sys

import pytest

from lib import places

WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
import {module}
"""


@pytest.mark.parametrize("own", [None, "7"])
@pytest.mark.parametrize("module", ["conftest", "benchmarks.sweeps", "benchmarks.models", "lib.engine.vlm"])
def test_threads_do_not_spin(module, own):
    settings = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    settings |= {"PYTHONPATH": str(places.ROOT / "tests")} | ({"GOMP_SPINCOUNT": own} if own else {})
    command = [sys.executable, "-c", WATCH.format(module=module)]
    done = subprocess.run(command, cwd=places.ROOT, env=settings, capture_output=True, text=True)
    assert done.stdout.strip() == (own or "1000"), done.stderr
