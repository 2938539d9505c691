"""Runs: prompts with their pictures, pairs of runs, and states read out of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.engine.hooks import hooks
from lib.engine.plans import Frame, Group
from lib.engine.prompts import Prompt
from lib.engine.tensors import ImageTokens, pick, take
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.edits import token_set
from lib.patching.prefix_cache import PrefixCache
from lib.patching.sites import Site


@dataclass(frozen=True)
class Run:
    """Prompts, each with its picture: row i is asked about images[index[i]]."""

    prompt: Prompt
    images: ImageTokens
    index: np.ndarray

    @classmethod
    def of(cls, vlm: VLM, questions: Sequence[str], images: ImageTokens, index=None, **options) -> Run:
        """A run from question texts; without `index` picture i belongs to question i."""
        index = np.arange(len(questions)) if index is None else np.asarray(index)
        if len(index) != len(questions) or (len(index) and not 0 <= index.min() <= index.max() < len(images)):
            raise UserError(f"{len(questions)} questions need as many pictures among the {len(images)} that are given.")
        return cls(vlm.tokens(questions, **options), images, index)

    def __len__(self) -> int:
        return len(self.prompt)

    def rows(self, rows) -> Run:
        return Run(self.prompt.rows(rows), self.images, np.asarray(self.index)[rows])


@dataclass(frozen=True)
class Pairs:
    """Clean runs and, where there are any, their counterfactual runs."""

    clean: Run
    counterfactual: Run | None


def checked_slots(slots: Iterable[int] | None, known: range) -> list[int]:
    """Slots in order, all of them by default; a UserError where one does not exist."""
    slots = list(known) if slots is None else sorted(set(int(slot) for slot in slots))
    if any(slot not in known for slot in slots):
        raise UserError(f"slots must lie in 0..{known[-1]}, not {slots}")
    return slots


def question_positions(tokens: Tensor, frame: Frame, group: Group) -> Tensor:
    """Where tokens counted from the end (-1 is the last), [token] or [row, token], stand in the question part."""
    length = group.plan.length - frame.split
    if int(tokens.min()) < -length:
        raise UserError(f"Token {int(tokens.min())} lies before the question, which has {length} tokens.")
    return tokens + length


def question_states(
    vlm: VLM,
    run: Run,
    places: Sequence[tuple[Site, int]],
    tokens: np.ndarray,
    progress: bool = False,
    cache: PrefixCache | None = None,
) -> tuple[dict[tuple[str, int], Float[Tensor, "row token width"]], Float[Tensor, "row hidden"]]:
    """States of question tokens at sites and slots, by (site name, slot), and the last token at slot L; on the CPU.

    tokens: counted from the end, [token] or [row, token]. cache: keys and values of pictures that are already known.
    """
    language, cache = vlm.language, cache or PrefixCache(vlm.language, run.images)
    out: dict[tuple[str, int], Tensor] = {}
    last: list[Tensor | None] = [None] * len(run)

    def work(frame, pictures, groups):
        past = cache.keys(frame, pictures)
        for group, part, row_of in groups:
            rows = group.rows[part].numpy()
            positions, seen = question_positions(token_set(tokens, rows), frame, group), {}

            def read(site, slot, positions=positions, seen=seen):
                def visit(tensor):
                    seen[site.name, slot] = take(tensor, positions).cpu()
                    return tensor

                return site.hook(language, slot, visit)

            with hooks(*(read(site, slot) for site, slot in places)):
                end = language.ask(frame, group, part, past.rows(row_of)).last
            yield rows, seen, end.cpu()

    for rows, seen, end in language.each(run.prompt, run.index, work, progress, cost=3.0):
        for key, state in seen.items():
            if key not in out:
                out[key] = state.new_empty(len(run), *state.shape[1:])
            out[key][torch.as_tensor(rows)] = state
        for row, state in zip(rows, end, strict=True):
            last[row] = state
    return out, torch.stack(last)


def tokens_at(
    vlm: VLM, run: Run, slots: Iterable[int] | None = None, chosen=slice(None)
) -> dict[int, Float[Tensor, "image chosen hidden"]]:
    """Image tokens of run.images in the residual stream at slots 0..L-1 (at slot L nobody reads them any more).

    chosen: only these tokens. NaN for pictures that no row asks about. The picture stands before the question, and its
    tokens attend to nothing behind it: to earlier tokens only, or, in families with attention in both directions within
    a picture, to the picture's own. So their states belong to the picture, and any question serves to obtain them.
    """
    slots, width = checked_slots(slots, vlm.slots[:-1]), run.images.shape[-1]  # without inputs of later layers' own
    out = {slot: torch.full_like(run.images[:, chosen], torch.nan) for slot in slots}

    def work(frame, pictures, groups):
        context = vlm.language.prefill(frame, pick(run.images, pictures), capture=slots, at=slice(frame.first, None))
        at = (frame.image - frame.first)[chosen]
        yield pictures, {slot: context.hidden[slot][:, at, :width] for slot in slots}

    for pictures, states in vlm.language.each(run.prompt, run.index, work):
        for slot, state in states.items():
            out[slot][pictures] = state.to(out[slot])
    return out
