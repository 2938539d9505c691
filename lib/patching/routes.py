"""How patched runs are computed: one class for each kind of token that is edited.

Each class leaves out what its kind of edit cannot change (for edits of image tokens, the text before the picture). It
goes through the clean prompts in batches; `units` says which of them belong together. For the rows of a batch it yields
every version of their runs: the columns that name the version, and the last token at slot L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.engine.hooks import hooks
from lib.engine.keys_values import KeyValues
from lib.engine.plans import Frame, Group, Output
from lib.engine.tensors import ImageTokens, pick, put, take
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.patching.edits import Interchange, token_set
from lib.patching.prefix_cache import PrefixCache
from lib.patching.results import BASELINE
from lib.patching.runs import Pairs, Run, question_positions, question_states
from lib.patching.sites import RESIDUAL, Site

Versions = list[tuple[dict, Tensor]]  # the columns of a version of some rows, and their last token at slot L
Part = tuple[Group, np.ndarray, np.ndarray]  # a group, rows inside it, the row of each one's unit in the batch


@dataclass(frozen=True)
class Patch:
    """One edit at one site of the language model, at some slots; `columns` name it in the table."""

    name: str
    edit: Callable
    site: Site
    slots: tuple[int, ...]
    columns: dict

    def at(self, slot: int) -> dict:
        return {"run": "patched", "slot": slot, **self.columns}


class Route:
    """What routes have in common; `baseline` holds the further columns of runs without any edit."""

    unit, cost = "pictures", 1.0  # what progress counts; memory as a multiple of a plain forward pass

    def __init__(self, vlm: VLM, pairs: Pairs, baseline: dict):
        self.vlm, self.language, self.pairs, self._columns = vlm, vlm.language, pairs, baseline
        self.units = pairs.clean.index

    def baseline(self, run: str) -> dict:
        return {"run": run, "slot": BASELINE, **self._columns}

    def batch(self, frame: Frame, units: np.ndarray, parts: list[Part]) -> Iterator[tuple[np.ndarray, Versions]]:
        """(rows of the pairs, versions of their runs) of a batch, as `LanguageModel.each` hands it over."""
        raise NotImplementedError


def distinct_pictures(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (clean, counterfactual) pictures [couple, 2], and the couple of each row."""
    clean, other = pairs.clean.index, pairs.counterfactual
    both = np.stack([clean, clean if other is None else other.index], axis=1)
    found, couple = np.unique(both, axis=0, return_inverse=True)
    return found, couple.reshape(-1)


# --- tokens of the question, the last one included ------------------------------------------------------------


class QuestionTokens(Route):
    """Edits of question tokens: the image part of a prompt is never run again.

    States of the counterfactual runs are read first. Where only the last token changes, all sites and slots run side by
    side, as so many last tokens that do not see each other; else the question is run from each slot on.
    """

    cost = 3.0

    def __init__(self, vlm: VLM, pairs: Pairs, patches: Sequence[Patch], baseline: dict, progress: bool):
        super().__init__(vlm, pairs, baseline)
        clean, other = pairs.clean, pairs.counterfactual
        again = np.intersect1d(clean.index, other.index) if other.images is clean.images else ()
        self.cache = PrefixCache(self.language, clean.images, again)
        self.last_only = [patch for patch in patches if np.all(patch.edit.targets == -1)]
        self.several = [patch for patch in patches if not np.all(patch.edit.targets == -1)]
        last = len(self.language.layers) - 1
        self.needed = {min(slot, last) for patch in self.several for slot in patch.slots}
        self.needed |= {slot for patch in self.last_only if patch.site is not RESIDUAL for slot in patch.slots}
        self.states: dict[str, dict] = {}
        self.other_last = self._read(other, [p for p in patches if not p.edit.own], progress)
        if any(patch.edit.own for patch in patches):
            self._read(clean, [p for p in patches if p.edit.own], progress)

    def _read(self, run: Run, patches: Sequence[Patch], progress: bool) -> Tensor:
        """Read the states that patches write, and return the run's last token at slot L."""
        edits = {patch.name: patch.edit for patch in patches}
        sets = [token_set(edit.sources, np.arange(len(run))).expand(len(run), -1) for edit in edits.values()]
        tokens = torch.cat(sets or [torch.full((len(run), 1), -1)], dim=1).numpy()
        places = list(dict.fromkeys((patch.site, slot) for patch in patches for slot in patch.slots))
        cache = self.cache if run.images is self.pairs.clean.images else None
        states, last = question_states(self.vlm, run, places, tokens, progress, cache)
        ends = np.cumsum([own.shape[1] for own in sets])
        for name, own, end in zip(edits, sets, ends, strict=True):
            self.states[name] = {key: state[:, end - own.shape[1] : end] for key, state in states.items()}
        return last

    def batch(self, frame, units, parts):
        past = self.cache.keys(frame, units)
        for group, part, row_of in parts:
            rows, own = group.rows[part].numpy(), past.rows(row_of)
            at = slice(None) if self.several else slice(-1, None)
            run = self.language.ask(frame, group, part, own, capture=self.needed, at=at, keep=bool(self.last_only))
            other = self.other_last[rows].to(run.last.device)
            versions = [(self.baseline("clean"), run.last), (self.baseline("counterfactual"), other)]
            yield rows, versions + self._side_by_side(group, rows, run)
            for patch in self.several:
                yield rows, [self._from_slot(frame, group, rows, run, own, patch, slot) for slot in patch.slots]

    def _side_by_side(self, group: Group, rows: np.ndarray, run: Output) -> Versions:
        """All edits of the last token alone, in portions of as many versions as a prompt has tokens."""
        jobs = sorted(((slot, patch) for patch in self.last_only for slot in patch.slots), key=lambda job: job[0])
        size, out = max(group.plan.length, len(self.language.slots)), []
        for begin in range(0, len(jobs), size):
            states, registrations = {}, []
            for number, (slot, patch) in enumerate(jobs[begin : begin + size]):
                source = self.states[patch.name][patch.site.name, slot][rows]
                if patch.site is RESIDUAL:  # enters as it is; at other sites the clean one enters and is changed there
                    states.setdefault(slot, []).append(source.to(run.last.device))
                else:
                    states.setdefault(slot, []).append(run.hidden[slot][:, -1:])
                    write = _put_at([number], source)
                    registrations.append(patch.site.hook(self.language, slot, write))
            with hooks(*registrations):
                entering = {slot: torch.cat(versions, dim=1) for slot, versions in states.items()}
                ends = self.language.run_last(group.plan, entering, run.keys.first(group.plan.length - 1))
            named = [patch.at(slot) for slot, patch in jobs[begin : begin + size]]
            out += zip(named, ends.unbind(1), strict=True)
        return out

    def _from_slot(self, frame, group, rows, run: Output, past: KeyValues, patch: Patch, slot: int) -> tuple:
        """One edit of several question tokens at one slot."""
        start = min(slot, len(self.language.layers) - 1)
        targets = question_positions(token_set(patch.edit.targets, rows), frame, group)
        write = _put_at(targets, self.states[patch.name][patch.site.name, slot][rows])
        with hooks(patch.site.hook(self.language, slot, write)):
            return patch.at(slot), self.language.run(group.plan, run.hidden[start], start, frame.split, past).last


def _put_at(positions, source: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: put(tensor, torch.as_tensor(positions), source)


# --- image tokens ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Rows of a group asked about unpatched pictures: `unit` is the row of each one's pictures in the batch."""

    group: Group
    rows: np.ndarray
    unit: np.ndarray
    clean: Output


@dataclass(frozen=True)
class PatchedPictures:
    """One patch in the pictures of a batch: (clean, other) rows of each patched picture, a pair that stands for it, and
    the patched picture of each row that is asked."""

    patch: Patch
    pictures: np.ndarray
    pairs: np.ndarray
    member: np.ndarray


class ImageTokensOfPairs(Route):
    """Edits of image tokens: text before the image and all slots before the edit are never run again.

    A picture is patched once for all questions about the same two pictures, and its run stops at the keys and values of
    the last layer. What comes after them no longer reaches the last token: the patched run is the clean one. Small jobs
    run together, because a CPU is idle in small batches.
    """

    unit, cost = "scenes", 3.0

    def __init__(self, vlm: VLM, pairs: Pairs, patches: Sequence[Patch], baseline: dict, progress: bool):
        super().__init__(vlm, pairs, baseline)
        self.patches = patches
        self.couples, self.units = distinct_pictures(pairs)
        self.places = list(dict.fromkeys((patch.site, slot) for patch in patches for slot in patch.slots))
        self.room = max(1, self.language.batch_size(pairs.clean.prompt.length) * 3 // 8)  # pictures that run together

    def batch(self, frame, units, parts):
        pictures, row_of = np.unique(self.couples[units], return_inverse=True)
        row_of, inner, seen = row_of.reshape(-1, 2), sorted({slot for _, slot in self.places}), {}
        images = pick(self.pairs.clean.images, pictures)
        with hooks(*(self._reader(site, slot, frame.first, seen) for site, slot in self.places)):
            context = self.language.prefill(frame, images, capture=inner, at=slice(frame.first, None))
        asked = []
        for group, part, unit in parts:
            rows = group.rows[part].numpy()
            clean = self.language.ask(frame, group, part, context.keys.rows(row_of[unit, 0]), capture=inner)
            asked.append(Asked(group, rows, unit, clean))
            versions = [(self.baseline("clean"), clean.last)]
            if self.pairs.counterfactual is not None:
                other = self.language.ask(frame, group, part, context.keys.rows(row_of[unit, 1])).last
                versions.append((self.baseline("counterfactual"), other))
            yield rows, versions
        jobs = [self._job(patch, asked, row_of) for patch in self.patches]
        for slot in sorted({slot for patch in self.patches for slot in patch.slots}):
            here = [job for job in jobs if slot in job.patch.slots]
            for packed in _packed([job for job in here if self._reaches(job.patch.site, slot, seen)], self.room):
                past = self._patched(frame, context, seen, packed, slot)
                yield from self._answers(frame, asked, packed, slot, past)
            ended = [job.patch.at(slot) for job in here if not self._reaches(job.patch.site, slot, seen)]
            for each in asked if ended else ():
                yield each.rows, [(columns, each.clean.last) for columns in ended]

    def _reaches(self, site: Site, slot: int, seen: dict) -> bool:
        """Whether image tokens at a place reach the last token; `seen` are those that came before the run ended."""
        if (site, slot) not in seen and slot < len(self.language.layers) - 1:
            raise UserError(f"The site {site.name} is not computed in layer {slot}: name a module that is.")
        return (site, slot) in seen

    def _reader(self, site: Site, slot: int, first: int, seen: dict):
        def visit(tensor: Tensor) -> Tensor:
            seen[site, slot] = tensor[:, first:]
            return tensor

        return site.hook(self.language, slot, visit)

    def _job(self, patch: Patch, asked: list[Asked], row_of: np.ndarray) -> PatchedPictures:
        pairs = np.concatenate([each.rows for each in asked])
        units = np.concatenate([each.unit for each in asked])
        keys = [(int(unit), patch.edit.key(int(pair))) for unit, pair in zip(units, pairs, strict=True)]
        number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        first = dict(zip(reversed(keys), reversed(pairs.tolist()), strict=True))
        chosen = np.array([first[key] for key in number])
        return PatchedPictures(
            patch, row_of[[unit for unit, _ in number]], chosen, np.array([number[key] for key in keys])
        )

    def _patched(self, frame: Frame, context: Output, seen: dict, jobs: list[PatchedPictures], slot: int) -> KeyValues:
        """Keys and values of the patched pictures of some jobs, one below the other."""
        image, rows, begin = frame.image - frame.first, [], 0
        writes: dict[Site, list] = {}
        for job in jobs:
            rows.append(torch.as_tensor(job.pictures[:, 0]))
            source = seen[job.patch.site, slot][torch.as_tensor(job.pictures[:, 1])]
            writes.setdefault(job.patch.site, []).append((slice(begin, begin + len(job.pairs)), job, source))
            begin += len(job.pairs)

        def writer(segments):
            def visit(tensor: Tensor) -> Tensor:
                out = tensor.clone()
                for own, job, source in segments:
                    tokens = job.patch.edit(take(tensor[own], image), take(source, image), job.pairs)
                    out[own] = put(tensor[own], image, tokens)
                return out

            return visit

        prefix = context.keys.rows([0]).first(frame.first)
        hidden = context.hidden[slot][torch.cat(rows)]
        with hooks(*(site.hook(self.language, slot, writer(segments)) for site, segments in writes.items())):
            plan = frame.groups[0].plan
            return self.language.run(plan, hidden, slot, frame.first, prefix, keys_only=True).keys

    def _answers(self, frame: Frame, asked: list[Asked], jobs: list[PatchedPictures], slot: int, past: KeyValues):
        """The questions of a batch about the patched pictures of some jobs."""
        offsets, begin = np.cumsum([0, *(len(job.pairs) for job in jobs)]), 0
        for each in asked:
            own = slice(begin, begin + len(each.rows))
            begin = own.stop
            rows = np.concatenate([job.member[own] + at for job, at in zip(jobs, offsets, strict=False)])
            hidden = each.clean.hidden[slot].repeat(len(jobs), 1, 1)
            last = self.language.run(each.group.plan, hidden, slot, frame.split, past.rows(rows)).last
            columns = [job.patch.at(slot) for job in jobs]
            yield each.rows, list(zip(columns, last.split(len(each.rows)), strict=True))


def _packed(jobs: list[PatchedPictures], room: int) -> Iterable[list[PatchedPictures]]:
    """Jobs in batches of about `room` pictures, at least one job each."""
    batch: list[PatchedPictures] = []
    for job in jobs:
        if batch and sum(len(each.pairs) for each in batch) + len(job.pairs) > room:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


# --- the image encoder ----------------------------------------------------------------------------------------


class EncoderPatches(Route):
    """Interchanges of patches in the residual stream of the image encoder, answered with the resulting image tokens.

    An image token stands for all patches that the projector merges into it; token sets are shared by all pairs. Of the
    encoder's states a batch holds only the patches that edits take, at the slots of the sweep; they count in its size.
    """

    unit = "scenes"

    def __init__(
        self, vlm: VLM, pairs: Pairs, pictures: Sequence, edits: dict[str, Interchange], slots: list, baseline: dict
    ):
        super().__init__(vlm, pairs, baseline)
        self.pictures, self.edits, self.slots = pictures, edits, slots
        self.couples, self.units = distinct_pictures(pairs)
        self.taken = [self._taken(column) for column in (0, 1)]
        held = sum(map(len, self.taken)) * len(slots) * vlm.encoder.width * vlm.dtype.itemsize
        self.cost = 1.0 + held / self.language.row_bytes(pairs.clean.prompt.length)

    def _taken(self, column: int) -> np.ndarray:
        """Numbers of the patches that edits take from the clean (0) or the counterfactual (1) pictures."""
        sources = [edit.sources for edit in self.edits.values() if edit.own == (column == 0)]
        return np.unique(self.vlm.encoder.patches(np.concatenate([np.empty(0, dtype=int), *sources])))

    def batch(self, frame, units, parts):
        for column, run in enumerate(("clean", "counterfactual")):
            images = pick(self.pairs.clean.images, self.couples[units, column])
            yield from self._answers(frame, images, parts, self.baseline(run))
        states = [self._states(self.couples[units, column], self.taken[column]) for column in (0, 1)]
        for name, edit in self.edits.items():
            for slot in self.slots:
                columns = {"run": "patched", "slot": slot, "edit": name}
                yield from self._answers(frame, self._patched(edit, slot, units, states), parts, columns)

    def _states(self, numbers: np.ndarray, taken: np.ndarray) -> tuple[dict[int, Tensor], np.ndarray]:
        """States of the patches `taken` by slot, once per distinct picture, and the row of each picture in them."""
        used, row_of = np.unique(numbers, return_inverse=True)
        if not len(taken):
            return {}, row_of
        pictures = [self.pictures[i] for i in used]
        return self.vlm.encode(pictures, capture=self.slots, at=torch.as_tensor(taken))[1], row_of

    def _patched(self, edit: Interchange, slot: int, units: np.ndarray, states: list[tuple]) -> ImageTokens:
        column = 0 if edit.own else 1
        held, row_of = states[column]
        targets, sources = (self.vlm.encoder.patches(x) for x in (edit.targets, edit.sources))
        targets, sources = torch.as_tensor(targets), torch.as_tensor(np.searchsorted(self.taken[column], sources))

        def write(patches: Tensor, index: np.ndarray) -> Tensor:
            return put(patches, targets, take(held[slot][torch.as_tensor(row_of[index])], sources))

        return self.vlm.encode([self.pictures[i] for i in self.couples[units, 0]], edits={slot: write})

    def _answers(self, frame: Frame, images: ImageTokens, parts: list[Part], columns: dict):
        past = self.language.prefill(frame, images).keys
        for group, part, unit in parts:
            last = self.language.ask(frame, group, part, past.rows(unit)).last
            yield group.rows[part].numpy(), [(columns, last)]


# --- attention of the last token ------------------------------------------------------------------------------


class Knockout(Route):
    """The last token is cut off from image tokens in ranges of layers."""

    def __init__(
        self, vlm: VLM, pairs: Pairs, token_sets: dict[str, np.ndarray], spans: Sequence[range], baseline: dict
    ):
        super().__init__(vlm, pairs, baseline)
        self.token_sets, self.spans = token_sets, spans

    def batch(self, frame, units, parts):
        past = self.language.prefill(frame, pick(self.pairs.clean.images, units)).keys
        starts = sorted({span.start for span in self.spans})
        for group, part, row_of in parts:
            rows, own, length = group.rows[part].numpy(), past.rows(row_of), group.plan.length
            clean = self.language.ask(frame, group, part, own, capture=starts, at=slice(-1, None), keep=True)
            before = clean.keys.first(length - 1)
            yield rows, [(self.baseline("clean"), clean.last)]
            for name, tokens in self.token_sets.items():
                hidden = frame.image[token_set(tokens, rows)].expand(len(rows), -1)
                for span in self.spans:
                    stream, cut = clean.hidden[span.start], blind(hidden, span, length)
                    last = self.language.run(group.plan, stream, span.start, length - 1, before, mask=cut).last
                    yield rows, [({"run": "patched", "slot": span.start, "stop": span.stop, "edit": name}, last)]


def blind(tokens: Tensor, span: range, length: int) -> Callable[[int, dict], dict]:
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
