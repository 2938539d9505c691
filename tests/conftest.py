"""Models and pairs that several test files share, made once for each file that asks for them; which process of
`pytest -n` runs what."""

import os

# Before torch is imported: processes side by side share the cores. The user's own setting wins.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import lib  # noqa: F401, I001  before torch, which reads how OpenMP's threads wait when it is loaded
import pytest
from tiny import tiny

from lib import places
from lib.analysis import studies
from lib.engine import vlm
from lib.stimuli import pairs


def pytest_collection_modifyitems(items):
    """A file stays in one process, where its models are made once; slow tests are on their own, and first."""
    for item in items:
        slow = item.get_closest_marker("slow")
        item.add_marker(pytest.mark.xdist_group(item.nodeid if slow else item.path.name))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def published(monkeypatch):
    """Results are read from the published record, not from what this machine has run."""
    monkeypatch.setenv("DUAL_OUTPUTS", str(places.PUBLISHED))


@pytest.fixture(scope="module")
def model():
    return tiny("reference")


@pytest.fixture(scope="module")
def small(model):
    return studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=2))


@pytest.fixture(scope="module")
def reference():
    return vlm.load("reference", device="cpu")


@pytest.fixture(scope="module")
def trained(reference):
    return studies.study(reference, pairs.mirrored_pairs("squares", reference.grid, n=3))
