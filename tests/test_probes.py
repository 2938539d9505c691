"""Probes on image tokens made by hand, so that what is readable is known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lib.analysis.probes import (
    ObjectTokens,
    control_labels,
    evaluate,
    score,
    shuffled_labels,
    split_images,
    train,
)
from lib.errors import UserError

SIDE, DEPTH, KINDS = 6, 24, 6
PLACES = np.array([[13, 19], [15, 21], [17, 23]])  # two tokens per object, in columns 1, 3 and 5


def scenes(order=1.0, content=1.0, noise=0.3, count=60, seed=0):
    """Image tokens = column code * order + entity code * content + noise; and who stands where."""
    rng = np.random.default_rng(seed)
    codes = np.random.default_rng(99)
    column, kind = codes.normal(size=(3, DEPTH)), codes.normal(size=(KINDS, DEPTH))
    tokens = rng.normal(size=(count, SIDE * SIDE, DEPTH)) * noise
    for token in range(SIDE * SIDE):
        tokens[:, token] += order * column[token % SIDE // 2]
    entities = np.stack([rng.permutation(KINDS)[:3] for _ in range(count)])
    for place, where in enumerate(PLACES):
        tokens[:, where] += content * kind[entities[:, place]][:, None]
    return torch.tensor(tokens, dtype=torch.float32), entities


def objects(**options):
    tokens, entities = scenes(**options)
    return ObjectTokens.of(tokens, PLACES, entities)


def accuracy(table):
    return table.groupby(["recipe", "test"])["correct"].mean()


def test_objects_pick_the_right_tokens():
    tokens, entities = scenes(noise=0, content=1, order=0)
    data = ObjectTokens.of(tokens, PLACES, entities)
    assert data.x.shape == (60 * 6, DEPTH)
    row = np.flatnonzero((data.image == 7) & (data.place == 2))
    assert torch.equal(data.x[row], tokens[7, PLACES[2]]) and (data.entity[row] == entities[7, 2]).all()
    shifted = np.broadcast_to(PLACES, (60, 3, 2)).copy()
    shifted[7] -= 6
    assert torch.equal(ObjectTokens.of(tokens, shifted, entities).x[row], tokens[7, PLACES[2] - 6])


@pytest.mark.parametrize("recipe", ["adamw", "logistic"])
def test_order_is_read_where_it_is_and_only_there(recipe):
    train_images, test_images = split_images(60, 45, 15)
    there = accuracy(evaluate(objects(), train_images, test_images, [recipe], [4, 5], lr=1e-2))
    assert there[recipe, "held_out"] > 0.95 and there[recipe, "entities"] > 0.9
    assert there[recipe, "shuffled"] < 0.6
    absent = accuracy(evaluate(objects(order=0.0), train_images, test_images, [recipe], [4, 5], lr=1e-2))
    assert absent[recipe, "held_out"] < 0.5 and absent[recipe, "control"] > 0.9  # what things are is still read


def test_a_code_of_absolute_place_fails_elsewhere():
    data = objects()
    tokens, entities = scenes(seed=1)
    shifted = ObjectTokens.of(tokens, (PLACES - 2) % (SIDE * SIDE), entities)  # the whole scene one strip further left
    table = accuracy(evaluate(data, *split_images(60, 45, 15), ["logistic"], elsewhere=shifted))
    assert table["logistic", "places"] < 0.35


def test_recipes_agree_and_logistic_is_scikit_learns():
    data = objects(noise=1.0)
    probes = {recipe: train(data.x, data.place, 3, recipe, lr=1e-2) for recipe in ("adamw", "logistic")}
    scores = [score(probe, data)["correct"].mean() for probe in probes.values()]
    assert abs(scores[0] - scores[1]) < 0.05
    # the optimum itself, by another solver in double precision: scikit-learn's defaults stop well before it
    x = data.x.double().numpy()
    exact = LogisticRegression(max_iter=20000, tol=1e-10)
    for rows, labels in ((data.place < 3, 3), (data.place < 2, 2)):
        scaled = (x[rows] - x[rows].mean(0)) / x[rows].std(0)
        expected = exact.fit(scaled, data.place[rows]).predict_proba(scaled)
        found = train(data.x[rows], data.place[rows], labels, "logistic").probabilities(data.x[rows])
        assert np.allclose(found, expected, atol=1e-4)


def test_adamw_is_the_papers_recipe():
    """The same numbers as torch.nn.Linear trained with AdamW step by step from the same start."""
    data = objects()
    probe, start = train(data.x, data.place, 3, seed=3), train(data.x, data.place, 3, seed=3, epochs=0)
    linear = torch.nn.Linear(DEPTH, 3)
    with torch.no_grad():
        linear.weight.copy_(start.weight.T)
        linear.bias.zero_()
    optimiser = torch.optim.AdamW(linear.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(linear(data.x), torch.tensor(data.place)).backward()
        optimiser.step()
    assert torch.allclose(linear.weight.T, probe.weight, atol=1e-5)
    again = train(data.x, data.place, 3, seed=3)
    assert torch.equal(again.weight, probe.weight) and not torch.equal(
        train(data.x, data.place, 3).weight, probe.weight
    )


def test_labels_of_the_controls():
    data = objects()
    shuffled = shuffled_labels(data, seed=1)
    assert sorted(shuffled) == sorted(data.place) and (shuffled != data.place).any()
    assert all(len(set(shuffled[data.units == unit])) == 1 for unit in np.unique(data.units))
    control = control_labels(data, seed=1)
    assert all(len(set(control[data.entity == kind])) == 1 for kind in range(KINDS))
    assert np.bincount([control[data.entity == kind][0] for kind in range(KINDS)]).tolist() == [2, 2, 2]


def test_scores_are_per_object():
    data = objects()
    table = score(train(data.x, data.place, 3, "logistic"), data)
    assert len(table) == 180 and set(table.columns) == {"image", "place", "entity", "correct"}


def test_bad_input():
    with pytest.raises(UserError, match="need 80 images"):
        split_images(60, 60, 20)
    with pytest.raises(UserError, match="unknown probe recipe 'svm'"):
        train(torch.zeros(2, 2), [0, 1], 2, "svm")
    with pytest.raises(UserError, match="one label per row"):
        train(torch.zeros(2, 2), [0], 2)
