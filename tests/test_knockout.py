"""Attention knock-out on the embedded model."""

from lib.analysis import knockout, studies
from lib.patching import sweep
from lib.stimuli import pairs


def test_the_last_token_reads_the_target(reference):
    study = studies.study(reference, pairs.mirrored_pairs("squares", reference.grid, n=2, seed=0)).kept()
    sets = knockout.reading_sets(study)
    assert {name: tokens.shape[1] for name, tokens in sets.items()} == {
        "target": 4, "opposite": 4, "middle": 4, "background": 132, "all": 144, "random": 4,
    }  # fmt: skip
    layers = len(reference.layers)
    table = sweep.knockout_sweep(
        reference, study.clean, sets, study.ids, study.roles, knockout.layer_ranges(layers), progress=False
    )
    change = knockout.probability_changes(table, layers)
    onward = change[(change["span"] == "onward") & (change["slot"] == 0)].groupby("edit")["change"].mean()
    assert onward["all"] < -0.3 and abs(onward["random"]) < 0.2
    assert set(change.groupby("span")["slot"].nunique()) == {layers}
