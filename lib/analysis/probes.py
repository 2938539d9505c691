"""Linear probes of the ordinal place on image tokens, and the controls they need (PROTOCOL.md 3; floor 3).

Two recipes give the same kind of `Probe`: "adamw" is the paper's, "logistic" the exact optimum of a regularised
logistic regression (scikit-learn), so that no conclusion depends on the optimiser.

Controls: labels that are random per entity (`control_labels`; Hewitt and Liang 2019), labels shuffled among objects
(`shuffled_labels`), and entities or places that were not seen in training (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.engine.tensors import ImageTokens
from lib.errors import UserError

RECIPES = ("adamw", "logistic")


@dataclass(frozen=True)
class Probe:
    """Class scores x @ weight + bias; the columns of weight are the directions that enhancement amplifies."""

    weight: Float[Tensor, "hidden label"]
    bias: Float[Tensor, " label"]

    def probabilities(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... label"]:
        return (x.float() @ self.weight.to(x.device) + self.bias.to(x.device)).softmax(-1)


# --- training -----------------------------------------------------------------------------------------------


def train(
    x: Float[Tensor, "row hidden"],
    y,
    labels: int,
    recipe: str = "adamw",
    seed: int = 0,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    epochs: int = 200,
    strength: float = 1.0,
) -> Probe:
    """A linear probe with `labels` classes, trained on rows x with integer labels y.

    recipe "adamw" takes lr, weight_decay and the number of full-batch epochs; "logistic" takes strength, scikit-learn's
    C (the inverse of the penalty). An unknown recipe or a wrong number of labels is a UserError.
    """
    x, y = x.detach().float().cpu(), torch.as_tensor(np.asarray(y), dtype=torch.long)
    if len(x) != len(y) or not len(x):
        raise UserError(f"a probe needs one label per row, not {len(y)} labels for {len(x)} rows")
    if recipe == "adamw":
        return _adamw(x, y, labels, seed, lr, weight_decay, epochs)
    if recipe == "logistic":
        return _logistic(x, y, labels, strength)
    raise UserError(f"unknown probe recipe {recipe!r}: choose one of {', '.join(RECIPES)}")


def _adamw(x: Tensor, y: Tensor, labels: int, seed: int, lr: float, weight_decay: float, epochs: int) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5
    weight = ((torch.rand(x.shape[1], labels, generator=generator) * 2 - 1) * bound).requires_grad_()
    bias = torch.zeros(labels, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay)
    with torch.enable_grad():
        for _ in range(epochs):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(x @ weight + bias, y).backward()
            optimiser.step()
    return Probe(weight.detach(), bias.detach())


def _logistic(x: Tensor, y: Tensor, labels: int, strength: float) -> Probe:
    """Fitted on standardised columns; weight and bias include the scaling."""
    from sklearn.linear_model import LogisticRegression

    centre, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    # scikit-learn's own choice, lbfgs with tol=1e-4, stops where probabilities are still off by .01
    model = LogisticRegression(C=strength, solver="newton-cg", tol=1e-6)
    model.fit(((x - centre) / scale).double().numpy(), y.numpy())
    weight, bias = torch.zeros(x.shape[1], labels), torch.full((labels,), -1e4)  # absent labels are never predicted
    coefficients = torch.tensor(model.coef_, dtype=torch.float32)
    intercepts = torch.tensor(model.intercept_, dtype=torch.float32)
    if len(model.classes_) == 2:  # scikit-learn keeps one column for two classes
        coefficients = torch.stack([-coefficients[0] / 2, coefficients[0] / 2])
        intercepts = torch.stack([-intercepts[0] / 2, intercepts[0] / 2])
    for k, label in enumerate(model.classes_):
        weight[:, label] = coefficients[k] / scale
        bias[label] = intercepts[k] - (coefficients[k] / scale) @ centre
    return Probe(weight, bias)


# --- data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectTokens:
    """The tokens of the objects in a set of images, one row per token."""

    x: Float[Tensor, "row hidden"]
    image: Int[np.ndarray, " row"]
    place: Int[np.ndarray, " row"]  # ordinal place along the axis: 0, 1, 2
    entity: Int[np.ndarray, " row"]  # number of the entity

    @classmethod
    def of(cls, tokens: ImageTokens, places, entities: Int[np.ndarray, "image place"]) -> ObjectTokens:
        """The rows of chosen tokens; places: token numbers [place, token] for all images, or [image, place, token]."""
        places, entities = np.asarray(places), np.asarray(entities)
        places = np.broadcast_to(places, (len(tokens), *places.shape[-2:]))
        images, count, size = places.shape
        image = np.repeat(np.arange(images), count * size)
        x = tokens[torch.as_tensor(image), torch.as_tensor(places.ravel().copy())]
        place = np.tile(np.repeat(np.arange(count), size), images)
        return cls(x.float().cpu(), image, place, entities[image, place])

    def rows(self, mask) -> ObjectTokens:
        mask = np.asarray(mask)
        return ObjectTokens(self.x[torch.as_tensor(mask)], self.image[mask], self.place[mask], self.entity[mask])

    @property
    def units(self) -> np.ndarray:
        """The number of each row's object; all tokens of one object in one image share it."""
        return self.image * (self.place.max() + 1) + self.place


def split_images(images: int, train: int, test: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint random image numbers for training and testing."""
    if train + test > images:
        raise UserError(f"{train} training and {test} test images need {train + test} images, there are {images}")
    order = np.random.default_rng(seed).permutation(images)
    return np.sort(order[:train]), np.sort(order[train : train + test])


def shuffled_labels(objects: ObjectTokens, seed: int = 0) -> np.ndarray:
    """Ordinal places shuffled among objects; the tokens of one object keep a common label."""
    units, first, member = np.unique(objects.units, return_index=True, return_inverse=True)
    return np.random.default_rng(seed).permutation(objects.place[first])[member.ravel()]


def control_labels(objects: ObjectTokens, labels: int = 3, seed: int = 0) -> np.ndarray:
    """A random label per entity, balanced: what a probe can learn by memorising what entities look like."""
    known = np.unique(objects.entity)
    label_of = np.random.default_rng(seed).permutation(np.arange(len(known)) % labels)
    return label_of[np.searchsorted(known, objects.entity)]


# --- evaluation ---------------------------------------------------------------------------------------------


def score(probe: Probe, objects: ObjectTokens, labels=None) -> pd.DataFrame:
    """Share of correctly classified tokens of every object: image, place, entity, correct.

    The unit for intervals is the image.
    """
    labels = objects.place if labels is None else np.asarray(labels)
    correct = probe.probabilities(objects.x).argmax(-1).cpu().numpy() == labels
    table = pd.DataFrame(
        {
            "image": objects.image,
            "place": objects.place,
            "entity": objects.entity,
            "correct": correct.astype(float),
        }
    )
    return table.groupby(["image", "place", "entity"], as_index=False)["correct"].mean()


def evaluate(
    objects: ObjectTokens,
    train_images: Sequence[int],
    test_images: Sequence[int],
    recipes=RECIPES,
    held_out_entities: Sequence[int] = (),
    elsewhere: ObjectTokens | None = None,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """All tests of the ordinal place: one row per recipe, test and object, with the share of its correct tokens.

    Tests: held_out (images not seen in training), control (random label per entity), shuffled (shuffled training
    labels), entities (trained without `held_out_entities`, tested on them alone), places (trained on `objects`, tested
    on `elsewhere`, for example on lines that are shifted as a whole).
    """
    inside = np.isin(objects.image, train_images)
    here, there = objects.rows(inside), objects.rows(np.isin(objects.image, test_images))
    control = control_labels(objects, seed=seed)
    new = np.isin(here.entity, held_out_entities)
    parts = []
    for recipe in recipes:

        def fit(x, y, recipe=recipe):
            return train(x, y, 3, recipe, seed, **options)

        plain = fit(here.x, here.place)
        results = {
            "held_out": score(plain, there),
            "control": score(fit(here.x, control[inside]), there, control[np.isin(objects.image, test_images)]),
            "shuffled": score(fit(here.x, shuffled_labels(here, seed)), there),
        }
        if len(held_out_entities):
            known = here.rows(~new)
            results["entities"] = score(fit(known.x, known.place), there.rows(np.isin(there.entity, held_out_entities)))
        if elsewhere is not None:
            results["places"] = score(plain, elsewhere)
        parts += [table.assign(recipe=recipe, test=test) for test, table in results.items()]
    return pd.concat(parts, ignore_index=True)
