"""The run-time check of array shapes can fail."""

import pytest
import torch

from lib.analysis.probes import Probe, train


def test_a_wrong_shape_is_refused():
    probe = Probe(torch.zeros(4, 3), torch.zeros(3))
    assert probe.probabilities(torch.zeros(5, 4)).shape == (5, 3)
    with pytest.raises(TypeError, match="Type-check error"):
        train(torch.zeros(5, 4, 1), [0] * 5, 3)
