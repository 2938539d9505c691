"""The ladder: what each step takes, and what is left where the source of order is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.analysis import ablation, ladder, studies
from lib.engine import vlm
from lib.stimuli import pairs
from lib.stimuli.token_sets import background, object_tokens


@pytest.fixture(scope="module")
def climbed(trained):
    return ladder.steps(trained)


def test_each_step_takes_what_it_says(trained, climbed):
    pair, grid = trained.pairs[0], trained.vlm.grid
    tokens = {step: study.clean.images[int(study.clean.index[0])] for step, study in climbed.items()}
    objects = [torch.from_numpy(object_tokens(grid, pair.orientation, place)) for place in range(3)]
    rest = torch.from_numpy(background(grid, pair.orientation))
    empty = trained.vlm.encode([ladder.alone(pair.clean, grid, None).image(grid.canvas)])[0]
    for step in ladder.STEPS[1:]:
        torch.testing.assert_close(tokens[step][rest], empty[rest])
    for place in objects:
        torch.testing.assert_close(tokens["empty background"][place], tokens["intact"][place])
    own = trained.vlm.encode([ladder.alone(pair.clean, grid, pair.clean.entities[0], 0).image(grid.canvas)])[0]
    torch.testing.assert_close(tokens["own place"][objects[0]], own[objects[0]])


def test_the_last_step_is_the_papers_ablation(trained, climbed):
    drawn = pairs.ablated_pairs("squares", trained.vlm.grid, n=3)
    paper = ablation.ablated_study(trained.vlm, drawn)
    assert [p.clean for p in drawn] == [p.clean for p in trained.pairs]
    ours = climbed["middle"]
    for mine, theirs in ((ours.clean, paper.clean), (ours.counterfactual, paper.counterfactual)):
        torch.testing.assert_close(
            mine.images[torch.as_tensor(mine.index)], theirs.images[torch.as_tensor(theirs.index)]
        )


def test_an_encoder_blind_to_place_keeps_everything_on_the_ladder():
    model = vlm.load("backbone_only")
    study = studies.study(model, pairs.mirrored_pairs("squares", model.grid, n=2))
    table = ladder.left(ladder.steps(study))
    found = ladder.claims(table)
    assert found["order_lost_named"].value == pytest.approx(0, abs=0.02)
    assert found["order_left_named"].value == pytest.approx(1, abs=0.02)
    assert ladder.place_dependence(model, study.pairs[0].clean.entities)["difference"].max() < 1e-5


def table_of(named, target=0.6):
    """Two steps in which a share `named` of the probability goes to the two answers."""
    rows = []
    for step, mass, lead in (("intact", 1.0, 0.8), ("middle", named, 0.2)):
        for pair in range(6):
            for run in ("clean", "counterfactual"):
                high, low = mass * (1 + lead) / 2, mass * (1 - lead) / 2
                where = {"pair": pair, "couple": pair, "run": run, "step": step}
                rows.append(where | {"target": high, "opposite": low, "order": high - low})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("named", [1.0, 0.1])
def test_answers_that_name_neither_do_not_count_as_lost_order(named):
    table = table_of(named)
    assert ladder.order_named(table, "middle").value == pytest.approx(0.2)
    assert ladder.lost_named(table, "middle").value == pytest.approx(1 - 0.2 / 0.8)
    assert np.isfinite(ladder.lost_named(table, "middle").low)


def test_the_share_of_answers_that_name_a_candidate_is_that_of_the_metrics_step():
    table = pd.DataFrame(
        {"step": ["own place", "own place", "middle", "middle"], "names_neither": [False, False, True, False]}
    )
    assert ladder.names_candidate(table, "order_lost_own_place") == 1
    assert ladder.names_candidate(table, "order_lost_named") == ladder.names_candidate(table, "order_left_named") == 0.5
