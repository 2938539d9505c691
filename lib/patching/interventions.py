"""Interventions on a vision-language model: data in, tidy table out (floor 3: no files, no plots, no model
families).

Every sweep takes a `Run` (prompts, each with its picture as image tokens) and candidate ids, and returns one
row per pair, slot and candidate role with its probability and logit. Rows of the unpatched runs stand in the
same table, so that every figure can show its baselines: `run` is "clean", "counterfactual" or "patched", and
baselines have slot -1.

All sweeps are resumable: `done` is what an earlier call returned or saved, its pairs are skipped and its rows
returned with the rest; `save` is called with every finished part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.engine.prefix_cache import PrefixCache
from lib.engine.prompts import Prompt
from lib.engine.tensors import Ids, ImageTokens, pick, put, take
from lib.engine.vlm import VLM
from lib.errors import UserError

BASELINE = -1  # the slot of rows that belong to no slot


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
        return cls(vlm.tokens(questions, **options), images, index)

    def __len__(self) -> int:
        return len(self.prompt)

    def rows(self, rows) -> Run:
        return Run(self.prompt.rows(rows), self.images, np.asarray(self.index)[rows])


# --- tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Scores as tidy rows: pair, run, the sweep's own columns, role, probability, logit, and the labels."""

    vlm: VLM
    ids: Ids
    roles: tuple[str, ...]
    labels: pd.DataFrame | None = None
    first: bool = False  # add column `is_top`: is the most probable token of the vocabulary a spelling of the role?

    def part(self, pairs, last: Float[Tensor, "pair hidden"], **columns) -> pd.DataFrame:
        """Rows for pairs whose last token is `last` at slot L."""
        pairs = np.asarray(pairs)
        ids = self.ids[torch.as_tensor(pairs)]
        probability, logit = (x.cpu().numpy() for x in self.vlm.score(last, ids))
        count = len(self.roles)
        out = {"pair": np.repeat(pairs, count)}
        out |= {key: np.repeat(value, count) if np.ndim(value) else value for key, value in columns.items()}
        out |= {
            "role": np.tile(self.roles, len(pairs)),
            "probability": probability.ravel(),
            "logit": logit.ravel(),
        }
        if self.first:
            top = self.vlm.logits(last).argmax(-1).cpu()
            out["is_top"] = (ids == top[:, None, None]).any(-1).numpy().ravel()
        return pd.DataFrame(out)

    def parts(self, pairs, last: Sequence[Float[Tensor, "pair hidden"]], **columns) -> pd.DataFrame:
        """Rows for several runs of the same pairs at once, run after run; columns hold one value per run."""
        last = torch.cat(list(last))
        many = {key: np.repeat(np.array(value), len(pairs)) for key, value in columns.items()}
        return self.part(np.tile(pairs, len(last) // len(pairs)), last, **many)

    def finish(self, parts: list[pd.DataFrame], done: pd.DataFrame | None) -> pd.DataFrame:
        """All parts in a fixed order."""
        parts = ([done] if done is not None and len(done) else []) + parts
        if not parts:
            return pd.DataFrame(columns=["pair", "run", "slot", "role", "probability", "logit"])
        out = pd.concat(parts, ignore_index=True)
        keys = [key for key in ("edit", "run", "stage", "slot", "pair") if key in out]
        return out.sort_values(keys, kind="stable", ignore_index=True)

    def labelled(self, part: pd.DataFrame) -> pd.DataFrame:
        """The part with the label columns of its pairs."""
        if self.labels is None:
            return part
        extra = self.labels.reset_index(drop=True).iloc[part["pair"]].reset_index(drop=True)
        return pd.concat([part, extra], axis=1)


def _rest(count: int, done: pd.DataFrame | None) -> np.ndarray:
    """The pairs that are still to do."""
    finished = set() if done is None or not len(done) else set(done["pair"])
    return np.array([pair for pair in range(count) if pair not in finished], dtype=int)


def _collect(table: Table, results: Iterable[pd.DataFrame], done, save) -> pd.DataFrame:
    parts = []
    for part in results:
        parts.append(table.labelled(part))
        if save:
            save(parts[-1])
    return table.finish(parts, done)


def _slots(slots: Iterable[int] | None, known: range) -> list[int]:
    slots = list(known) if slots is None else sorted(set(int(slot) for slot in slots))
    if any(slot not in known for slot in slots):
        raise UserError(f"slots must lie in 0..{known[-1]}, not {slots}")
    return slots


# --- the last token (PROTOCOL.md 2) -------------------------------------------------------------------------


def last_token_states(
    vlm: VLM,
    run: Run,
    slots: Sequence[int] | None = None,
    progress: bool = False,
    memory: PrefixCache | None = None,
) -> Float[Tensor, "pair slot hidden"]:
    """The last token's residual stream at slots for every row of a run; what `memory` has is used."""
    slots, memory = _slots(slots, vlm.slots), memory or PrefixCache(vlm.language, run.images)
    out: list = [None] * len(run)

    def work(frame, pictures, groups):
        past = memory.keys(frame, pictures)
        for group, part, places in groups:
            hidden = vlm.language.ask(frame, group, part, past.rows(places), capture=slots, at=slice(-1, None)).hidden
            yield group.rows[part].tolist(), torch.cat([hidden[slot].cpu() for slot in slots], dim=1)

    for rows, states in vlm.language.each(run.prompt, run.index, work, progress, cost=3.0):
        for row, state in zip(rows, states, strict=True):
            out[row] = state
    return torch.stack(out)


def last_token_sweep(
    vlm: VLM,
    clean: Run,
    counterfactual: Run,
    ids: Ids,
    roles: Sequence[str],
    labels: pd.DataFrame | None = None,
    slots: Iterable[int] | None = None,
    progress: bool = True,
    done: pd.DataFrame | None = None,
    save: Callable | None = None,
) -> pd.DataFrame:
    """Replace the clean run's last token by the counterfactual's, at each slot in turn, and read the answer.

    The clean run keeps its keys and values; only the last token is run again, all slots side by side.
    """
    slots, table = _slots(slots, vlm.slots), Table(vlm, ids, tuple(roles), labels)
    todo = _rest(len(clean), done)
    if not len(todo):
        return table.finish([], done)
    clean, counterfactual = clean.rows(todo), counterfactual.rows(todo)
    wanted = sorted({*slots, len(vlm.layers)})
    same = counterfactual.images is clean.images
    memory = PrefixCache(vlm.language, clean.images, np.intersect1d(clean.index, counterfactual.index) if same else ())
    shared = memory if same else None
    states = last_token_states(vlm, counterfactual, wanted, progress, shared)

    def work(frame, pictures, groups):
        past = memory.keys(frame, pictures)
        for group, part, places in groups:
            rows = group.rows[part].numpy()
            run = vlm.language.ask(frame, group, part, past.rows(places), keep=True)
            entering = {slot: states[rows, i].to(run.last.device) for i, slot in enumerate(wanted) if slot in slots}
            before = run.keys.first(group.plan.length - 1)
            ends = vlm.language.run_last(group.plan, {slot: x[:, None] for slot, x in entering.items()}, before)
            patched = dict(zip(entering, ends.unbind(1), strict=True))
            other = states[rows, -1].to(run.last.device)
            yield table.parts(
                todo[rows],
                [run.last, other, *patched.values()],
                run=["clean", "counterfactual", *["patched"] * len(patched)],
                slot=[BASELINE, BASELINE, *patched],
            )

    results = vlm.language.each(clean.prompt, clean.index, work, progress, cost=3.0)
    return _collect(table, results, done, save)


# --- image tokens --------------------------------------------------------------------------------------------


def tokens_at(
    vlm: VLM, run: Run, slots: Iterable[int] | None = None, chosen=slice(None)
) -> dict[int, Float[Tensor, "image chosen hidden"]]:
    """Image tokens of run.images in the residual stream at slots 0..L-1 (at slot L nobody reads them any more).

    chosen: only these tokens. NaN for pictures that no row asks about. The picture stands before the question, and its
    tokens attend to nothing behind it: to earlier tokens only, or, in families with attention in both directions within
    a picture, to the picture's own. So their states belong to the picture, and any question serves to obtain them.
    """
    slots = _slots(slots, vlm.slots[:-1])
    out = {slot: torch.full_like(run.images[:, chosen], torch.nan) for slot in slots}

    def work(frame, pictures, groups):
        context = vlm.language.prefill(frame, pick(run.images, pictures), capture=slots, at=slice(frame.first, None))
        yield pictures, {slot: context.hidden[slot][:, (frame.image - frame.first)[chosen]] for slot in slots}

    for pictures, states in vlm.language.each(run.prompt, run.index, work):
        for slot, state in states.items():
            out[slot][pictures] = state.to(out[slot])
    return out


# --- edits of image tokens ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interchange:
    """Image tokens `targets` of the clean run take the vectors of `sources` in the counterfactual run.

    Each is one set [token] for all pairs or one per pair [pair, token]; target k takes source k. `own=True`
    takes the sources from the clean run itself: regions change places within one picture.
    """

    targets: np.ndarray
    sources: np.ndarray
    own: bool = False

    def __post_init__(self):
        if np.shape(self.targets) != np.shape(self.sources):
            raise UserError("an interchange needs as many sources as targets")

    def key(self, pair: int) -> bytes:
        """Pairs with the same pictures and the same key share one patched picture."""
        return b"" if np.ndim(self.targets) == 1 else bytes(np.stack([self.targets[pair], self.sources[pair]]))

    def __call__(self, clean: Tensor, other: Tensor | None, pairs: np.ndarray) -> Tensor:
        """Image tokens [pair, N*N, d] of both runs at one slot -> the patched ones."""
        source = clean if self.own else other
        return put(clean, _sets(self.targets, pairs), take(source, _sets(self.sources, pairs)))


@dataclass(frozen=True)
class Replace:
    """Image tokens `targets` become given vectors: [d], [token, d], or zeros when None (mean- and
    zero-ablation)."""

    targets: np.ndarray
    values: Tensor | None = None

    def key(self, pair: int) -> bytes:
        return b"" if np.ndim(self.targets) == 1 else bytes(np.asarray(self.targets[pair]))

    def __call__(self, clean: Tensor, other: Tensor | None, pairs: np.ndarray) -> Tensor:
        values = torch.zeros(1, device=clean.device) if self.values is None else self.values.to(clean.device)
        return put(clean, _sets(self.targets, pairs), values)


def _sets(tokens: np.ndarray, pairs: np.ndarray) -> Tensor:
    tokens = np.asarray(tokens)
    return torch.as_tensor(tokens if tokens.ndim == 1 else tokens[pairs])


def swap(first: Sequence[int], second: Sequence[int], own: bool = False) -> Interchange:
    """Both regions at once: `first` takes the other run's `second`, `second` its `first` (PROTOCOL.md 4)."""
    first, second = np.asarray(first), np.asarray(second)
    return Interchange(np.concatenate([first, second], -1), np.concatenate([second, first], -1), own)


# --- token sweeps (PROTOCOL.md 4 and 6) ---------------------------------------------------------------------


def token_sweep(
    vlm: VLM,
    run: Run,
    edits: dict[str, Callable],
    ids: Ids,
    roles: Sequence[str],
    other=None,
    labels: pd.DataFrame | None = None,
    slots: Iterable[int] | None = None,
    progress: bool = True,
    done: pd.DataFrame | None = None,
    save: Callable | None = None,
) -> pd.DataFrame:
    """Edit image tokens at each slot in turn and read the answer; column `edit` names the edit.

    run: the clean run. other: for each pair the number of its counterfactual picture in run.images; the
    question is the same. edits: {name: Interchange, Replace, or any function with their call and key}.

    Text before the image and all slots before the edit are never run again; the image part is patched once
    for all questions about the same two pictures, and stops at the keys and values of the last layer. At slot
    L image tokens no longer reach the last token, so that the patched run is the clean one.
    """
    slots, table = _slots(slots, vlm.slots), Table(vlm, ids, tuple(roles), labels)
    end = len(vlm.layers)
    todo = _rest(len(run), done)
    if not len(todo):
        return table.finish([], done)
    run = run.rows(todo)
    other = None if other is None else np.asarray(other)[todo]
    both = np.stack([run.index, run.index if other is None else other], axis=1)
    scenes, scene = np.unique(both, axis=0, return_inverse=True)  # distinct (clean, counterfactual) pictures

    def work(frame, chosen, groups):
        pictures, place = np.unique(scenes[chosen], return_inverse=True)
        place = place.reshape(-1, 2)
        inner = [slot for slot in slots if slot < end]
        context = vlm.language.prefill(frame, pick(run.images, pictures), capture=inner, at=slice(frame.first, None))
        image = frame.image - frame.first
        prefix = context.keys.rows([0]).first(frame.first)
        asked = []
        for group, part, places in groups:
            pairs = todo[group.rows[part].numpy()]
            past = context.keys.rows(place[places, 0])
            clean = vlm.language.ask(frame, group, part, past, capture=inner)
            asked.append((group, part, places, pairs, clean))
            yield table.part(pairs, clean.last, run="clean", slot=BASELINE, edit="none")
            if other is not None:
                last = vlm.language.ask(frame, group, part, context.keys.rows(place[places, 1])).last
                yield table.part(pairs, last, run="counterfactual", slot=BASELINE, edit="none")
        for name, edit in edits.items():
            keys = [
                (int(p), edit.key(int(i)))
                for _, _, places, pairs, _ in asked
                for p, i in zip(places, pairs, strict=True)
            ]
            distinct = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            member = np.array([distinct[key] for key in keys])
            first = np.array([keys.index(key) for key in distinct])  # a pair that stands for each patched picture
            every = np.concatenate([pairs for _, _, _, pairs, _ in asked])
            which = place[[key[0] for key in distinct]]
            for slot in slots:
                patched = None
                if slot < end:
                    stream = context.hidden[slot]
                    clean = stream[torch.as_tensor(which[:, 0])]
                    tokens = edit(take(clean, image), take(stream[torch.as_tensor(which[:, 1])], image), every[first])
                    plan = asked[0][0].plan
                    patched = vlm.language.run(plan, put(clean, image, tokens), slot, frame.first, prefix, keys_only=True).keys
                begin = 0
                for group, part, _, pairs, clean in asked:
                    last = clean.last
                    if slot < end:
                        past = patched.rows(member[begin : begin + len(part)])
                        last = vlm.language.run(group.plan, clean.hidden[slot], slot, frame.split, past).last
                    begin += len(part)
                    yield table.part(pairs, last, run="patched", slot=slot, edit=name)

    def complete(frame, chosen, groups):  # all rows of a pair belong to one part
        yield pd.concat(list(work(frame, chosen, groups)), ignore_index=True)

    results = vlm.language.each(run.prompt, scene, complete, progress, cost=3.0, unit="scenes")
    return _collect(table, results, done, save)


# --- the image encoder --------------------------------------------------------------------------------------


def encoder_sweep(
    vlm: VLM,
    pictures: Sequence,
    run: Run,
    other,
    edits: dict[str, Interchange],
    ids: Ids,
    roles: Sequence[str],
    labels: pd.DataFrame | None = None,
    slots: Iterable[int] | None = None,
    progress: bool = True,
    done: pd.DataFrame | None = None,
    save: Callable | None = None,
) -> pd.DataFrame:
    """Interchange patches inside the image encoder at each encoder slot, then answer with the resulting image
    tokens.

    pictures: the pictures behind run.images, in the same order. edits: token sets shared by all pairs; an
    image token stands for all patches that the projector merges into it.
    """
    slots, table = _slots(slots, vlm.encoder_slots), Table(vlm, ids, tuple(roles), labels)
    todo = _rest(len(run), done)
    if not len(todo):
        return table.finish([], done)
    run, other = run.rows(todo), np.asarray(other)[todo]
    scenes, scene = np.unique(np.stack([run.index, other], axis=1), axis=0, return_inverse=True)
    used, place = np.unique(scenes, return_inverse=True)
    place = place.reshape(-1, 2)
    _, stream = vlm.encode([pictures[i] for i in used], capture=slots)

    def tokens(edit: Interchange, slot: int, chosen: np.ndarray) -> ImageTokens:
        targets, sources = (torch.as_tensor(vlm.encoder.patches(x)) for x in (edit.targets, edit.sources))
        origin = stream[slot][torch.as_tensor(place[chosen, 0 if edit.own else 1])]

        def exchange(patches: Tensor, index: np.ndarray) -> Tensor:
            return put(patches, targets, take(origin[torch.as_tensor(index)], sources))

        return vlm.encode([pictures[i] for i in scenes[chosen, 0]], edits={slot: exchange})

    def work(frame, chosen, groups):
        def answers(images, **columns):
            past = vlm.language.prefill(frame, images).keys
            for group, part, places in groups:
                last = vlm.language.ask(frame, group, part, past.rows(places)).last
                yield table.part(todo[group.rows[part].numpy()], last, **columns)

        parts = []
        for column, name in enumerate(("clean", "counterfactual")):
            images = pick(run.images, scenes[chosen, column])
            parts += answers(images, run=name, slot=BASELINE, edit="none")
        for name, edit in edits.items():
            for slot in slots:
                parts += answers(tokens(edit, slot, chosen), run="patched", slot=slot, edit=name)
        yield pd.concat(parts, ignore_index=True)

    results = vlm.language.each(run.prompt, scene, work, progress, unit="scenes")
    return _collect(table, results, done, save)


# --- ordering ablation (PROTOCOL.md 5) ----------------------------------------------------------------------


def ordering_ablation(
    alone: Float[Tensor, "entity token hidden"],
    empty: Float[Tensor, "token hidden"],
    entities: np.ndarray,
    places: Sequence[Sequence[int]],
    middle: Sequence[int],
) -> Float[Tensor, "scene token hidden"]:
    """Image tokens of scenes from which the order is removed.

    alone: image tokens of each entity standing alone in the middle; empty: those of the empty canvas.
    entities [scene, place]: which entity stands at each place. places: the tokens of each place; middle:
    those of the middle one. Every entity gets its own middle-place tokens, all other tokens are the empty
    canvas's: all N*N of them.
    """
    out = empty.expand(len(entities), -1, -1).clone()
    for place, tokens in enumerate(places):
        which = torch.as_tensor(np.asarray(entities)[:, place], device=alone.device)
        out[:, torch.as_tensor(np.asarray(tokens))] = alone[which][:, torch.as_tensor(np.asarray(middle))]
    return out


# --- amplification (PROTOCOL.md 7) --------------------------------------------------------------------------


def amplify(
    tokens: Float[Tensor, "... hidden"],
    directions: Float[Tensor, "direction hidden"],
    alpha: float,
    mode: str = "project",
) -> Float[Tensor, "... hidden"]:
    """Image tokens with directions amplified.

    mode "project" (the authors' code): h += alpha * (h.w / w.w) * w for each direction w, from the same h.
    mode "add" (the paper's formula): h += alpha * w.
    """
    return tokens + alpha * along(tokens, directions, mode)


def along(
    tokens: Float[Tensor, "... hidden"], directions: Float[Tensor, "direction hidden"], mode: str = "project"
) -> Float[Tensor, "... hidden"]:
    """What `amplify` adds at alpha = 1; a direction of length zero adds nothing."""
    w = directions.to(tokens.device, tokens.dtype)
    if mode == "add":
        return w.sum(0).expand_as(tokens)
    if mode != "project":
        raise UserError(f"mode must be 'project' or 'add', not {mode!r}")
    return tokens @ w.T / (w * w).sum(-1).clamp(min=torch.finfo(w.dtype).tiny) @ w


@dataclass(frozen=True)
class Along:
    """What amplification along directions adds at alpha = 1: [direction, d] for all pairs or [pair, direction, d]."""

    directions: Tensor
    mode: str = "project"

    def key(self, pair: int) -> bytes:
        """Pairs about one picture with the same key share one amplified picture."""
        return b"" if self.directions.ndim == 2 else self.directions[pair].cpu().numpy().tobytes()

    def __call__(self, tokens: Tensor, pairs: np.ndarray) -> Tensor:
        if self.directions.ndim == 2:
            return along(tokens, self.directions, self.mode)
        each = zip(tokens, self.directions[torch.as_tensor(pairs)], strict=True)
        return torch.stack([along(x, w, self.mode) for x, w in each])


def amplification_sweep(
    vlm: VLM,
    run: Run,
    directions: dict[str, Tensor | Callable],
    alphas: Sequence[float],
    ids: Ids,
    roles: Sequence[str],
    mode: str = "project",
    slot: int = 0,
    labels: pd.DataFrame | None = None,
    progress: bool = True,
    done: pd.DataFrame | None = None,
    save: Callable | None = None,
) -> pd.DataFrame:
    """Add alpha times a change to the image tokens at a slot, for every alpha; columns `edit` (name), `alpha` and
    `is_top` (the most probable token of the whole vocabulary is a spelling of the role).

    directions: {name: directions as `Along` takes them, or any function with its call and key, such as
    enhancement.Change}. The image part is run once for all questions about one picture with one key (say, with the
    options in both orders).
    """
    table = Table(vlm, ids, tuple(roles), labels, first=True)
    [slot] = _slots([slot], vlm.slots[:-1])
    todo = _rest(len(run), done)
    if not len(todo):
        return table.finish([], done)
    run = run.rows(todo)
    changes = {name: w if callable(w) else Along(w, mode) for name, w in directions.items()}

    def work(frame, pictures, groups):
        asked = [(group, part, todo[group.rows[part].numpy()]) for group, part, _ in groups]
        place = np.concatenate([places for _, _, places in groups])
        pairs = np.concatenate([own for _, _, own in asked])
        jobs = [Job("none", 0.0, None, np.arange(len(pictures)), None, place)]
        for name, change in changes.items():
            keys = [(int(p), change.key(int(pair))) for p, pair in zip(place, pairs, strict=True)]
            number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
            first = pairs[[keys.index(key) for key in number]]  # a pair that stands for each amplified picture
            which, member = np.array([p for p, _ in number]), np.array([number[key] for key in keys])
            jobs += [Job(name, float(alpha), change, which, first, member) for alpha in alphas]
        images = pick(run.images, pictures)
        room = max(1, vlm.language.batch_size(run.prompt.length) * 3 // 8)  # small batches stay in the cache
        parts = []
        for mine in _packed(jobs, room):
            past = _amplified(vlm, frame, images, mine, slot)
            offsets = np.cumsum([0, *(len(job.which) for job in mine)])
            begin = 0
            for group, part, own in asked:
                inside = slice(begin, begin + len(part))
                rows = np.concatenate([job.member[inside] + at for job, at in zip(mine, offsets, strict=False)])
                begin += len(part)
                last = vlm.language.ask(frame, group, np.tile(part, len(mine)), past.rows(rows)).last
                parts.append(
                    table.parts(
                        own,
                        [last],
                        run=["patched" if job.change else "clean" for job in mine],
                        slot=[slot if job.change else BASELINE for job in mine],
                        edit=[job.name for job in mine],
                        alpha=[job.alpha for job in mine],
                    )
                )
        yield pd.concat(parts, ignore_index=True)

    cost = min(len(alphas) * len(directions) + 1, 16)
    results = vlm.language.each(run.prompt, run.index, work, progress, cost=cost, unit="pictures")
    return _collect(table, results, done, save)


@dataclass(frozen=True)
class Job:
    """One version of some pictures: `which` pictures, a pair for each, and each row's place among them."""

    name: str
    alpha: float
    change: Callable | None
    which: np.ndarray
    pairs: np.ndarray | None
    member: np.ndarray


def _packed(jobs: list[Job], room: int) -> Iterable[list[Job]]:
    """Jobs in batches of about `room` pictures, at least one job each."""
    batch: list[Job] = []
    for job in jobs:
        if batch and sum(len(each.which) for each in batch) + len(job.which) > room:
            yield batch
            batch = []
        batch.append(job)
    yield batch


def _amplified(vlm: VLM, frame, images: Tensor, jobs: list[Job], slot: int):
    """Keys and values of all versions of the pictures, job after job."""

    def edit(hidden: Tensor) -> Tensor:
        out, begin = [], 0
        for job in jobs:
            tokens = take(hidden[begin : begin + len(job.which)], frame.image)
            begin += len(job.which)
            out.append(tokens + job.alpha * job.change(tokens, job.pairs) if job.change else tokens)
        return put(hidden, frame.image, torch.cat(out))

    which = torch.as_tensor(np.concatenate([job.which for job in jobs]), device=images.device)
    return vlm.language.prefill(frame, images[which], edits={slot: edit}).keys


# --- attention knock-out ------------------------------------------------------------------------------------


def knockout_sweep(
    vlm: VLM,
    run: Run,
    token_sets: dict[str, np.ndarray],
    ids: Ids,
    roles: Sequence[str],
    layers: Sequence[range] | None = None,
    labels: pd.DataFrame | None = None,
    progress: bool = True,
    done: pd.DataFrame | None = None,
    save: Callable | None = None,
) -> pd.DataFrame:
    """Cut the last token off from image tokens in a range of layers; columns `edit` (set), `slot` (first
    layer), `stop`.

    token_sets: {name: [token] or [pair, token]}. layers: ranges of layers, default each layer alone.
    """
    table = Table(vlm, ids, tuple(roles), labels)
    layers = [range(i, i + 1) for i in range(len(vlm.layers))] if layers is None else list(layers)
    todo = _rest(len(run), done)
    if not len(todo):
        return table.finish([], done)
    run = run.rows(todo)

    def work(frame, pictures, groups):
        past = vlm.language.prefill(frame, pick(run.images, pictures)).keys
        parts = []
        for group, part, places in groups:
            pairs, length = todo[group.rows[part].numpy()], group.plan.length
            starts = sorted({span.start for span in layers})
            clean = vlm.language.ask(frame, group, part, past.rows(places), capture=starts, at=slice(-1, None), keep=True)
            before = clean.keys.first(length - 1)
            parts.append(table.part(pairs, clean.last, run="clean", slot=BASELINE, stop=BASELINE, edit="none"))
            for name, tokens in token_sets.items():
                hidden = frame.image[_sets(tokens, pairs)].expand(len(pairs), -1)
                for span in layers:
                    cut = _blind(hidden, span, length)
                    last = vlm.language.run(group.plan, clean.hidden[span.start], span.start, length - 1, before, mask=cut).last
                    parts.append(table.part(pairs, last, run="patched", slot=span.start, stop=span.stop, edit=name))
        yield pd.concat(parts, ignore_index=True)

    return _collect(table, vlm.language.each(run.prompt, run.index, work, progress), done, save)


def _blind(tokens: Tensor, span: range, length: int) -> Callable[[int, dict], dict]:
    """A mask for the last token alone that hides tokens [batch, token] from it in some layers."""

    def cut(layer: int, kwargs: dict) -> dict:
        if layer not in span:
            return kwargs
        device = kwargs["position_embeddings"][0].device
        hidden = torch.zeros(len(tokens), length, dtype=torch.bool, device=device)
        hidden = hidden.scatter(1, tokens.to(device), True)[:, None, None]
        mask = kwargs["attention_mask"]
        if mask is None:
            mask = ~hidden
        elif mask.dtype == torch.bool:
            mask = mask & ~hidden
        else:
            mask = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
        return kwargs | {"attention_mask": mask}

    return cut
