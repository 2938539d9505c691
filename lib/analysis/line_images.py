"""Pictures of lines of three as image tokens: what probes are trained on and what they read (floor 3: no files, no
plots)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int

from lib.analysis.probes import Objects
from lib.engine.tensors import ImageTokens
from lib.engine.vlm import VLM
from lib.stimuli import token_sets
from lib.stimuli.grids import Grid
from lib.stimuli.scenes import Backdrop, Entity, entities, line_scene

Triple = tuple[Entity | None, ...]


@dataclass(frozen=True)
class Lines:
    """Pictures of lines of three entities of a setting: row k of images shows triples[k], None leaves a place empty.

    The grid's gap and the shift (rows, columns) say where the lines stand.
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
    ) -> Lines:
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
    def places(self) -> Int[np.ndarray, "place token"]:
        return np.stack([token_sets.object_tokens(self.grid, self.orientation, slot, self.shift) for slot in range(3)])

    @property
    def background(self) -> token_sets.Tokens:
        return token_sets.background(self.grid, self.orientation, self.shift)

    @cached_property
    def entities(self) -> Int[np.ndarray, "image place"]:
        """Which of the setting's entities stands at each place, -1 where none does."""
        number = {entity: k for k, entity in enumerate(entities(self.setting, self.grid))} | {None: -1}
        return np.array([[number[entity] for entity in triple] for triple in self.triples])

    @property
    def sets(self) -> Int[np.ndarray, " image"]:
        """Which set of three each picture shows, sets counted in the order of their entities' numbers."""
        return np.unique(np.sort(self.entities), axis=0, return_inverse=True)[1].ravel()

    @cached_property
    def objects(self) -> Objects:
        """The objects' tokens straight after the projector."""
        objects = Objects.of(self.images, self.places, self.entities)
        return objects.rows(objects.entity >= 0)
