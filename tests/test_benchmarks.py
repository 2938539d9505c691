"""The benchmark's bookkeeping: shares of the engine's time."""

import pytest
from tiny import tiny

from benchmarks.sweeps import LastToken, Tokens, where_time_goes
from lib.stimuli.pairs import last_token_pairs, mirrored_pairs


@pytest.mark.parametrize(("kind", "draw"), [(LastToken, last_token_pairs), (Tokens, mirrored_pairs)])
def test_shares_of_time_are_shares(kind, draw):
    vlm = tiny("reference")
    table = where_time_goes(kind(vlm, draw("squares", vlm.grid, 1), list(vlm.slots)))
    shares = table.set_index("part")["share"]
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all() and shares[["prefill", "ask", "rest"]].all()
    assert "run" not in vars(vlm.language) and vlm.logits == vlm.language.logits  # the model is as it was
