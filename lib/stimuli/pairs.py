"""Pairs of a clean and a counterfactual item for the three designs of PROTOCOL.md 2, 4 and 6 (floor 1).

In every design t0 is the clean answer. Docstrings describe `left` and `above`, where t0 stands at the first place; for
`right` and `below` every picture is mirrored. Pairs are drawn at random, deterministic per seed, setting and
direction, and nested: the first 20 of 50 pairs are the 20 pairs of n=20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import UserError, unknown
from lib.stimuli.grids import Grid
from lib.stimuli.questions import DIRECTIONS, OPPOSITE, SETTINGS, Item, line_item
from lib.stimuli.scenes import Entity, Scene, entities, line_scene, random_backdrop

LAST_TOKEN_ROLES = ("clean", "order", "attribute")
MIRRORED_ROLES = ("clean", "counterfactual", "reference")


@dataclass(frozen=True)
class Pair:
    """A clean and a counterfactual item, and the words to read: candidates[k] is the word of roles[k].

    split: `test` if no reference model saw either line of entities in training, else `train`.
    """

    clean: Item
    counterfactual: Item
    roles: tuple[str, ...]
    candidates: tuple[str, ...]

    @property
    def setting(self) -> str:
        return self.clean.setting

    @property
    def direction(self) -> str:
        return self.clean.direction

    @property
    def orientation(self) -> str:
        return self.clean.orientation

    @property
    def couple(self) -> str:
        """Both lines of entities, in either order and wherever they stand: the same for all pairs about the same two
        pictures, whichever is the clean one and whatever is asked. Such pairs are not independent, and intervals
        resample them together."""
        lines = (", ".join(map(str, item.entities)) for item in (self.clean, self.counterfactual))
        return f"{self.orientation}: {' | '.join(sorted(lines))}"

    @property
    def split(self) -> str:
        return "test" if self.clean.split == self.counterfactual.split == "test" else "train"


@dataclass(frozen=True)
class AblatedPair(Pair):
    """A mirrored pair and the scenes from which its ordering ablation takes vectors.

    alone[k]: the entity at place k of the *clean* picture, alone in the middle (the entity at place k of the
    counterfactual is in alone[2 - k]). empty: the same canvas without entities.
    """

    alone: tuple[Scene, Scene, Scene]
    empty: Scene


def last_token_pairs(setting: str, grid: Grid, n: int = 50, seed: int = 0, **options) -> list[Pair]:
    """Five distinct entities t0..t4, n pairs per direction (PROTOCOL.md 2).

    Clean: picture (t0, t1, t2), asked in direction d about t1, answer t0. Counterfactual: picture (t4, t1,
    t3), asked in the opposite direction about t1, answer t3. Candidates: t0 (clean), t2 (order), t3
    (attribute). Options: see `mirrored_pairs`.
    """

    def pair(t: Sequence[Entity], direction: str, item) -> Pair:
        clean = item((t[0], t[1], t[2]), direction)
        counterfactual = item((t[4], t[1], t[3]), OPPOSITE[direction])
        return Pair(clean, counterfactual, LAST_TOKEN_ROLES, (t[0].name, t[2].name, t[3].name))

    return _pairs(pair, 5, setting, grid, n, seed, **options)


def mirrored_pairs(setting: str, grid: Grid, n: int = 50, seed: int = 0, **options) -> list[Pair]:
    """Clean picture (t0, t1, t2), counterfactual its mirror (t2, t1, t0), the same question (PROTOCOL.md 4).

    n pairs per direction, no two of which show the same two pictures; those of opposite directions can (`Pair.couple`).
    Candidates: t0 (clean), t2 (counterfactual), t1
    (reference). Options: directions (default all four); shift (rows, columns) in tokens; photographs for random
    backgrounds, one per pair; objects, a folder of other pictures; split, "test" or "train", to draw only such pairs.
    A UserError if there are fewer than n different pairs.
    """
    return _pairs(_mirrored, 3, setting, grid, n, seed, **options)


def ablated_pairs(setting: str, grid: Grid, n: int = 50, seed: int = 0, **options) -> list[AblatedPair]:
    """The mirrored pairs of the same arguments with the scenes of their ordering ablation (PROTOCOL.md 5, 6)."""

    def pair(t: Sequence[Entity], direction: str, item) -> AblatedPair:
        plain = _mirrored(t, direction, item)
        alone, empty = ablation_scenes(plain.clean, grid)
        return AblatedPair(plain.clean, plain.counterfactual, plain.roles, plain.candidates, alone, empty)

    return _pairs(pair, 3, setting, grid, n, seed, **options)


def ablation_scenes(item: Item, grid: Grid) -> tuple[tuple[Scene, Scene, Scene], Scene]:
    """The scenes of an item's ordering ablation: each of its three entities alone in the middle, and the empty canvas.

    They have the orientation, shift and backdrop of the item's own picture.
    """
    same = (grid, item.orientation, item.shift, item.scene.backdrop)
    alone = tuple(line_scene((None, entity, None), *same) for entity in item.entities)
    return alone, line_scene((None, None, None), *same)


def _mirrored(t: Sequence[Entity], direction: str, item) -> Pair:
    clean = item((t[0], t[1], t[2]), direction)
    counterfactual = item((t[2], t[1], t[0]), direction)
    return Pair(clean, counterfactual, MIRRORED_ROLES, (t[0].name, t[2].name, t[1].name))


def _pairs(
    build,
    size: int,
    setting: str,
    grid: Grid,
    n: int,
    seed: int,
    directions: Sequence[str] = DIRECTIONS,
    shift: tuple[int, int] = (0, 0),
    photographs: tuple[str, ...] = (),
    objects: str | Path | None = None,
    split: str | None = None,
) -> list:
    """n pairs per direction, built by `build` from different ordered tuples of `size` entities."""
    if split not in (None, "test", "train"):
        raise unknown("split", split, ("test", "train"))
    pool = entities(setting, grid, objects)
    pairs = []
    for direction in directions:
        if direction not in DIRECTIONS:
            raise unknown("direction", direction, DIRECTIONS)
        seeds = [seed, size, SETTINGS.index(setting), DIRECTIONS.index(direction)]
        rng, backdrop_rng = np.random.default_rng(seeds), np.random.default_rng([*seeds, 1])
        seen: set[tuple[int, ...]] = set()
        found = []
        for _ in range(max(20_000, 200 * n)):  # one at a time, so that a longer list begins like a shorter one
            if len(found) == n:
                break
            drawn = tuple(rng.permutation(len(pool))[:size].tolist())
            if drawn in seen:
                continue
            seen |= {drawn, drawn[::-1]} if size == 3 else {drawn}  # a triple and its mirror give the same two pictures
            backdrop = random_backdrop(backdrop_rng, photographs) if photographs else None
            mirror = direction in ("right", "below")

            def item(line, asked, mirror=mirror, backdrop=backdrop):
                return line_item(setting, grid, line[::-1] if mirror else line, asked, shift, backdrop)

            pair = build([pool[k] for k in drawn], direction, item)
            if split in (None, pair.split):
                found.append(pair)
        if len(found) < n:
            raise UserError(
                f"There are only {len(found)} different pairs for {setting}, {direction}"
                f"{f', split {split}' if split else ''}: ask for n <= {len(found)}."
            )
        pairs += found
    return pairs
