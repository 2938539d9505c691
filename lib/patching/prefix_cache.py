"""The prefix cache: what comes before the question is run once per picture."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lib.engine import batching
from lib.engine.keys_values import KeyValues
from lib.engine.language import LanguageModel
from lib.engine.plans import Frame
from lib.engine.tensors import ImageTokens, pick


class PrefixCache:
    """Prefix cache: keys and values of everything up to the last image token, kept between uses.

    again: pictures that will be asked for a second time, the only ones that are kept, in a tenth of what a batch may
    take. More room was measured to save little time (docs/BENCHMARKS.md, Memory).
    """

    def __init__(self, language: LanguageModel, images: ImageTokens, again: Iterable[int] = ()):
        self.language, self.images, self.again = language, images, set(again)
        self.room = batching.budget(language.device) // 10
        self.held: dict[tuple, KeyValues] = {}
        self.seen: set[tuple] = set()

    def keys(self, frame: Frame, pictures: np.ndarray) -> KeyValues:
        """Those of pictures up to the last image token, row by row; only pictures that are not held are run."""
        keys = [(frame.prefix, int(p)) for p in pictures]
        new = [k for k, key in enumerate(keys) if key not in self.held]
        if not new:
            return KeyValues.stacked([self.held.pop(key) for key in keys])
        batch = self.language.prefill(frame, pick(self.images, pictures[new])).keys
        rows = {k: batch.row(i) for i, k in enumerate(new)}
        out = batch
        if len(new) < len(keys):
            out = KeyValues.stacked([rows[k] if k in rows else self.held.pop(key) for k, key in enumerate(keys)])
        for k, row in rows.items():
            first = keys[k] not in self.seen
            if first and keys[k][1] in self.again and (len(self.held) + 1) * row.bytes <= self.room:
                self.held[keys[k]] = row.rows([0])  # a copy: a view would hold the whole batch
            self.seen.add(keys[k])
        return out
