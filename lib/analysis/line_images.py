"""Pictures of lines of three, encoded as image tokens: the data of the probes (floor 3: no files, no plots)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int

from lib.analysis.probes import ObjectTokens
from lib.engine.tensors import ImageTokens
from lib.engine.vlm import VLM
from lib.stimuli import token_sets
from lib.stimuli.grids import Grid
from lib.stimuli.scenes import Backdrop, Entity, entities, line_scene

Triple = tuple[Entity | None, ...]


@dataclass(frozen=True)
class LineImages:
    """Pictures of lines of three entities of a setting: images[k] shows triples[k], where None leaves a place empty.

    The gap of the grid and the shift (rows, columns, in tokens) give the position of the lines on the canvas.
    """

    setting: str
    triples: tuple[Triple, ...]
    grid: Grid
    orientation: str
    shift: tuple[int, int]
    images: ImageTokens

    @classmethod
    def of(
        cls,
        vlm: VLM,
        setting: str,
        triples: Sequence[Triple],
        orientation: str,
        gap: int | None = None,
        along: int = 0,
        backdrops: Sequence[Backdrop] | None = None,
    ) -> LineImages:
        """Draw and encode one picture per triple.

        gap: tokens between neighbours, default the grid's own. along: shift of the line along its axis, in tokens.
        """
        grid = vlm.grid if gap is None else replace(vlm.grid, gap=gap)
        shift = (0, along) if orientation == "horizontal" else (along, 0)
        backdrops = backdrops or [None] * len(triples)
        scenes = [line_scene(t, grid, orientation, shift, b) for t, b in zip(triples, backdrops, strict=True)]
        images, index = vlm.distinct([scene.image(grid.canvas) for scene in scenes])
        return cls(setting, tuple(triples), grid, orientation, shift, images[torch.as_tensor(index)])

    @property
    def place_tokens(self) -> Int[np.ndarray, "place token"]:
        """The object tokens of each of the three places."""
        places = range(3)
        return np.stack([token_sets.object_tokens(self.grid, self.orientation, k, self.shift) for k in places])

    @property
    def background(self) -> token_sets.Tokens:
        """All tokens outside the three places."""
        return token_sets.background(self.grid, self.orientation, self.shift)

    @cached_property
    def entities(self) -> Int[np.ndarray, "image place"]:
        """The number of the setting's entity at each place, -1 where the place is empty."""
        number = {entity: k for k, entity in enumerate(entities(self.setting, self.grid))} | {None: -1}
        return np.array([[number[entity] for entity in triple] for triple in self.triples])

    @property
    def sets(self) -> Int[np.ndarray, " image"]:
        """The number of the set of three that each picture shows, in the order of the entities' numbers."""
        return np.unique(np.sort(self.entities), axis=0, return_inverse=True)[1].ravel()

    @cached_property
    def objects(self) -> ObjectTokens:
        """The tokens of the objects straight after the projector."""
        objects = ObjectTokens.of(self.images, self.place_tokens, self.entities)
        return objects.rows(objects.entity >= 0)
