"""Models and pairs that several test files share; made once for each file that asks for them."""

import lib  # noqa: F401, I001  before torch, which reads how OpenMP's threads wait when it is loaded
import pytest
from tiny import tiny

from lib import places
from lib.analysis import studies
from lib.engine import vlm
from lib.stimuli import pairs


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
