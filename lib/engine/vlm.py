"""One adapter over transformers' vision-language models (floor 2): read, write and rerun the residual stream
exactly.

The model is transformers' own; nothing of it is re-implemented. Every language-model layer is called with
exactly the keyword arguments that transformers' own forward pass hands to it (a `Plan`, recorded with hooks),
so rotary positions, sliding windows and masks of every family are right by construction, and a run can start
at any slot, at any token, against cached keys and values.

Vocabulary: slot l is the residual stream at the input of language-model layer l, slot L the output of the
last layer before the final norm. Image tokens are numbered in raster order, r * N + c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from lib.engine.families import Family
from lib.engine.loading import chat, read
from lib.engine.runs import (
    Edit,
    Enough,
    Frame,
    Group,
    Hidden,
    Ids,
    ImageTokens,
    KeyValues,
    Output,
    Plan,
    Prompt,
    hooks,
    pick,
    put,
    run_batches,
    take,
)
from lib.engine.spellings import Spellings, spellings
from lib.errors import UserError
from lib.stimuli.questions import SYSTEM_TEXT
from lib.stimuli.scenes import Grid

__all__ = [
    "VLM",
    "Edit",
    "Frame",
    "Group",
    "Hidden",
    "Ids",
    "ImageTokens",
    "KeyValues",
    "Memory",
    "Output",
    "Plan",
    "Prompt",
    "hooks",
    "load",
    "pick",
    "put",
    "run_batches",
    "take",
]


def load(
    name: str | Path = "reference",
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    attn: str = "sdpa",
    revision: str | None = None,
    device_map=None,
    grid: Grid | None = None,
) -> VLM:
    """A model ready for experiments.

    name: an embedded model (reference, joint, ...), a short name from lib.families.CHECKPOINTS, a hub id, or
    a folder. device: "auto" takes a GPU where there is one. dtype: when not given, float32 on a CPU and bfloat16
    on a GPU that computes in it (`lib.engine.loading.default_dtype`). attn: "sdpa" or "eager". device_map: passed to
    transformers ("auto" spreads a large model over GPUs and CPU); `device` is then ignored. grid: another token
    grid, for encoders that take pictures of any size.
    """
    found = read(name, device, dtype, attn, revision, device_map)
    return VLM(found.model, found.tokenizer, found.processor, found.family, grid, found.name, found.template)


class VLM:
    """A vision-language model with its tokenizer and image processor; see `load`."""

    def __init__(
        self,
        model,
        tokenizer,
        processor,
        family: Family,
        grid: Grid | None = None,
        name: str = "model",
        template: str | None = None,
    ):
        self.model, self.config = model.eval(), model.config
        self.tokenizer, self.processor, self.template = tokenizer, processor, template
        self.family, self.name = family, name
        self.merge = _merge(family, model.config)  # encoder patches per image token and side
        self.grid = grid or _grid(family, model.config, self.merge)
        self.base = model.model
        self.language = self.base.get_submodule(family.language)
        self.layers = self.language.layers
        self.encoder_layers = self.base.get_submodule(family.encoder)
        self.projector = self.base.get_submodule(family.projector)
        ids = (getattr(self.config, key, None) for key in ("image_token_id", "image_token_index"))
        self.image_id = next(i for i in ids if i is not None)
        self.special = dict(getattr(self.config, "dual_mechanisms", None) or {})
        self._plans: dict[tuple, Plan] = {}
        self._texts: dict[tuple, tuple[Tensor, Tensor]] = {}
        self._spelled: dict[str, Spellings] = {}

    @property
    def slots(self) -> range:
        """0..L."""
        return range(len(self.layers) + 1)

    @property
    def encoder_slots(self) -> range:
        """0..E: the input of encoder layer e, and the output of the last one that the projector reads."""
        count = len(self.encoder_layers)
        chosen = getattr(self.config, "vision_feature_layer", -1)  # counts slots, -1 is the last
        last = max(i if i >= 0 else count + 1 + i for i in ([chosen] if isinstance(chosen, int) else chosen))
        return range(last + 1)

    @property
    def device(self) -> torch.device:
        """Where inputs go; weights that are offloaded have no device of their own."""
        table = self.model.get_input_embeddings()
        offloaded = table.weight.device.type == "meta"
        return torch.device(table._hf_hook.execution_device) if offloaded else table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def tolerance(self) -> float:
        """How far probabilities of runs that should agree may lie apart: results of kernels depend on the shape of a
        batch, in the last of bfloat16's 8 bits (not yet measured on a GPU)."""
        return 1e-4 if self.dtype == torch.float32 else 3e-2

    # pictures -----------------------------------------------------------------------------------------------

    def _pixels(self, images: Sequence[Image.Image]) -> dict:
        """The arguments of get_image_features for a list of pictures of exactly the canvas size."""
        side = self.grid.canvas
        for image in images:
            if image.size != (side, side):
                raise UserError(
                    f"{self.name} needs pictures of {side} x {side} pixels ({self.grid.side} tokens of "
                    f"{self.grid.pixels} pixels), not {image.size[0]} x {image.size[1]}: "
                    "render or resize them to that."
                )
        images = [image.convert("RGB") for image in images]
        if self.family.extra:  # as in a prompt of several pictures: the whole picture once, no tiles
            images = [images if len(images) > 1 else images * 2]
        out = self.processor(images=images, return_tensors="pt", **self.family.options)
        out = {key: out[key] for key in self.family.inputs}
        if self.family.extra:
            count = len(images[0]) if images[0][0] is not images[0][-1] else 1
            out = {key: value[:count] for key, value in out.items()} | {"batch_num_images": torch.tensor([count + 1])}
        return {key: value.to(self.device) for key, value in out.items()}

    @property
    def _patch_order(self) -> Int[Tensor, " patch"]:
        """Raster number of the patch at each place of the encoder's sequence (one picture, class token left
        out)."""
        return _patch_order(self.family.order, self.grid.side, self.merge, _window(self.config, self.family))

    def _to_raster(self, hidden: Tensor, count: int) -> Float[Tensor, "image patch hidden"]:
        if self.family.packed:
            hidden = hidden.reshape(count, -1, hidden.shape[-1])
        elif self.family.order == "class":
            hidden = hidden[:, 1:]
        return hidden[:, torch.argsort(self._patch_order).to(hidden.device)]

    def _from_raster(self, patches: Tensor, like: Tensor) -> Tensor:
        out = patches[:, self._patch_order.to(patches.device)].to(like.dtype)
        if self.family.packed:
            return out.reshape(like.shape)
        return torch.cat([like[:, :1], out], dim=1) if self.family.order == "class" else out

    def patches(self, tokens) -> Int[np.ndarray, " patch"]:
        """Raster numbers of the encoder patches under image tokens (several patches where the projector
        merges them)."""
        merge, side = self.merge, self.grid.side
        row, column = np.divmod(np.asarray(tokens), side)
        inner_row, inner_column = np.divmod(np.arange(merge * merge), merge)
        rows = row[..., None] * merge + inner_row
        return (rows * side * merge + column[..., None] * merge + inner_column).reshape(*row.shape[:-1], -1)

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image.Image],
        edits: dict[int, Callable] | None = None,
        capture: Iterable[int] = (),
        progress: bool = False,
    ):
        """Image tokens of pictures: [image, N*N, hidden], after the projector, in raster order.

        edits: {encoder slot: function(stream, index)}: the residual stream [image, patch, width] with patches
        in raster order, and which pictures these are. capture: encoder slots to return, too; then the result
        is a pair (tokens, {slot: [image, patch, width]}).
        """
        edits, capture = edits or {}, list(capture)
        tokens, read = [], {slot: [] for slot in capture}
        patches = (self.grid.side * self.merge) ** 2
        width = getattr(self.config.vision_config, "hidden_size", 1024)

        def work(index: np.ndarray):
            seen: dict[int, Tensor] = {}
            with hooks(*self._encoder_hooks(index, edits, seen, set(capture))):
                return self._features(self._pixels([images[i] for i in index])), seen

        size = min(self.family.together, self.batch(patches, width))
        for _, (part, seen) in run_batches(len(images), work, size, progress, "pictures"):
            tokens.append(part[:, : self.grid.side**2])
            for slot in capture:
                read[slot].append(seen[slot])
        out = torch.cat(tokens)
        return (out, {slot: torch.cat(parts) for slot, parts in read.items()}) if capture else out

    def _features(self, inputs: dict) -> Float[Tensor, "image image_token hidden"]:
        out = self.base.get_image_features(**inputs, return_dict=True).pooler_output
        if not isinstance(out, Tensor):
            out = torch.cat([part.reshape(-1, part.shape[-1]) for part in out])
        return out.reshape(-1, self.grid.side**2 + self.family.extra, out.shape[-1])

    def _encoder_hooks(self, index, edits: dict[int, Callable], seen: dict, capture: set) -> list:
        """Hooks that read and write the encoder's residual stream at slots; slot e > 0 is written as output
        of e - 1."""

        def visit(slot: int, hidden: Tensor) -> Tensor:
            patches = self._to_raster(hidden, len(index))
            if slot in edits:
                edited = edits[slot](patches, index)
                hidden, patches = self._from_raster(edited, hidden), edited
            if slot in capture:
                seen[slot] = patches
            return hidden

        def before(module, args, kwargs):
            return (visit(0, args[0]), *args[1:]), kwargs

        def after(slot):
            def hook(module, args, output):
                tensor = output if isinstance(output, Tensor) else output[0]
                tensor = visit(slot, tensor)
                return tensor if isinstance(output, Tensor) else (tensor, *output[1:])

            return hook

        wanted = set(edits) | capture
        out = [(self.encoder_layers[0], "before", before)] if 0 in wanted else []
        return out + [(self.encoder_layers[slot - 1], "after", after(slot)) for slot in sorted(wanted) if slot > 0]

    def distinct(self, images: Sequence[Image.Image], progress: bool = False) -> tuple[ImageTokens, np.ndarray]:
        """Image tokens of the distinct pictures among images, and for each image its row there."""
        known: dict[bytes, int] = {}
        index, first = [], []
        for i, image in enumerate(images):
            digest = hashlib.sha256(str(image.size).encode() + image.convert("RGB").tobytes()).digest()
            if digest not in known:
                known[digest] = len(first)
                first.append(i)
            index.append(known[digest])
        return self.encode([images[i] for i in first], progress=progress), np.array(index)

    # questions ----------------------------------------------------------------------------------------------

    def text(self, question: str, system: str | None = SYSTEM_TEXT, images: int = 1) -> str:
        """The chat text of a question, with every picture written out as its image tokens."""
        token = self.tokenizer.convert_ids_to_tokens(self.image_id)
        placeholder = self.family.placeholder or token
        text = chat(self.tokenizer, self.template, question, system, images, placeholder, self.name)
        side, record = self.grid.side, self.family
        rows = (token * side + record.row_break) * (side - 1) + token * side + record.last_break
        picture = record.before + rows + token * record.extra + record.after
        return picture.join(text.split(placeholder))

    def tokens(self, questions: Sequence[str], system: str | None = SYSTEM_TEXT, images: int = 1) -> Prompt:
        """Tokenised questions as one batch, padded on the left; `images` pictures before each question."""
        per_picture = self._per_picture
        rows = []
        for question in questions:
            key = (question, system, images)
            if key not in self._texts:
                text = self.text(*key)
                special = not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))
                ids = torch.tensor(self.tokenizer(text, add_special_tokens=special)["input_ids"])
                places = (ids == self.image_id).nonzero()[:, 0]
                if len(places) != images * per_picture:
                    raise UserError(
                        f"{self.name}: the prompt has {len(places)} image tokens instead of "
                        f"{images * per_picture}; "
                        "the tokenizer does not know the image token, or the question contains it."
                    )
                places = places.reshape(images, per_picture)[:, self._raster].reshape(-1)
                self._texts[key] = (ids, places)
            rows.append(self._texts[key])
        length = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id or 0
        out = torch.full((len(rows), length), pad), torch.zeros(len(rows), length, dtype=torch.bool)
        for i, (ids, _) in enumerate(rows):
            out[0][i, length - len(ids) :] = ids
            out[1][i, length - len(ids) :] = True
        return Prompt(*out, torch.stack([places + length - len(ids) for ids, places in rows]))

    @property
    def _per_picture(self) -> int:
        """Image tokens of a picture in the prompt."""
        return self.grid.side**2 + self.family.extra

    @property
    def _raster(self):
        """Which of them stand for places, in raster order."""
        return slice(self.grid.side**2)

    def candidates(self, words: Sequence[Sequence[str]] | Sequence[str]) -> Ids:
        """Token ids of the spellings of words: [row, role, spelling], padded with -1, no id twice.

        words: one list of words per row (shorter rows end in roles without ids), or one list for a single
        row. The spellings of a word are itself in lower case and capitalised, each with and without a leading
        space; those of several tokens are dropped (`dropped_spellings`), one at least must remain.
        """
        table = [words] if words and isinstance(words[0], str) else words
        rows = [[self._spellings(word) for word in row] for row in table]
        roles, width = max(map(len, rows)), max(len(ids) for row in rows for ids in row)
        out = torch.full((len(rows), roles, width), -1)
        for i, row in enumerate(rows):
            for k, ids in enumerate(row):
                out[i, k, : len(ids)] = torch.tensor(ids)
        return out

    def _spellings(self, word: str) -> tuple[int, ...]:
        if word not in self._spelled:
            self._spelled[word] = spellings(self.tokenizer, word, self.name)
        return self._spelled[word].ids

    @property
    def dropped_spellings(self) -> dict[str, tuple[str, ...]]:
        """Of the words asked for so far, the spellings that do not count because they take several tokens."""
        return {word.strip(): found.dropped for word, found in self._spelled.items() if found.dropped}

    # language model: plans ----------------------------------------------------------------------------------

    def embed(self, prompt: Prompt, images: ImageTokens, index=None) -> Hidden:
        """Slot 0 of prompts: text embeddings with image tokens in their places.

        images: image tokens, one row per prompt (several pictures one after the other), or chosen by `index`.
        """
        ids = prompt.ids.to(self.device)
        table = self.model.get_input_embeddings()
        text = table(ids.masked_fill(ids == self.image_id, 0))
        if self.family.extra:
            text = torch.where((ids == self.image_id)[..., None], self.base.image_newline.to(text), text)
        images = images if index is None else pick(images, index)
        return put(text, prompt.image.to(text.device), images.reshape(len(prompt), -1, images.shape[-1]))

    def _positions(self, prompt: Prompt) -> Tensor:
        """Position ids as transformers makes them, or as `dual_mechanisms` of a calibration model asks."""
        mask = prompt.mask.to(self.device)
        if self.family.positions == "mrope":
            side = self.grid.side * self.merge
            pictures = prompt.image.numel() // self.grid.side**2
            ids = prompt.ids.to(self.device)
            positions, _ = self.base.get_rope_index(
                ids,
                mm_token_type_ids=(ids == self.image_id).int(),
                image_grid_thw=torch.tensor([[1, side, side]] * pictures, device=self.device),
                attention_mask=mask.int(),
            )
            return positions
        step = mask.long()
        if self.special.get("image_positions") == "shared":  # that of the first image token
            step = step.scatter(1, prompt.image[:, 1:].to(self.device), 0)
        return (step.cumsum(-1) - 1).clamp(min=0)

    def _mask(self, prompt: Prompt) -> Tensor:
        mask = prompt.mask.to(self.device)
        if self.special.get("image_attention") != "self":
            return mask.long()
        length = prompt.length
        picture = torch.zeros_like(mask).scatter(1, prompt.image.to(self.device), True)
        own = torch.eye(length, dtype=torch.bool, device=self.device)
        seen = torch.ones_like(own).tril() & mask[:, None, :]
        seen = (seen & ~(picture[:, :, None] & picture[:, None, :])) | own
        low = torch.finfo(self.dtype).min
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill(~seen, low)[:, None]

    @torch.no_grad()
    def plan(self, prompt: Prompt) -> Plan:
        """What transformers hands to each layer for these prompts; one row when all are alike, without padding."""
        alike = bool(prompt.mask.all()) and bool((prompt.image == prompt.image[0]).all())
        if alike:
            prompt = prompt.rows([0])
        key = (prompt.length, tuple(prompt.image[0].tolist())) if alike else None
        if key in self._plans:
            return self._plans[key]
        ids = prompt.ids.to(self.device)
        extra = {"token_type_ids": (ids == self.image_id).long()} if self.family.bidirectional else {}
        seen: dict[int, dict] = {}

        def recorder(layer):
            def record(module, args, kwargs):
                seen[layer] = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "use_cache")}
                if layer == len(self.layers) - 1:
                    raise Enough

            return record

        with hooks(*((module, "before", recorder(i)) for i, module in enumerate(self.layers))):
            try:
                self.base(
                    inputs_embeds=self.model.get_input_embeddings()(ids.masked_fill(ids == self.image_id, 0)),
                    attention_mask=self._mask(prompt),
                    position_ids=self._positions(prompt),
                    use_cache=False,
                    **extra,
                )
            except Enough:
                pass
        out = Plan(tuple(seen[i] for i in range(len(self.layers))), prompt.length)
        if alike:
            self._plans[key] = out
        return out

    def frames(self, prompt: Prompt) -> list[Frame]:
        """Prompts without padding, in frames (equal up to the last image token) and groups (equal length)."""
        groups: dict = {}
        for row in range(len(prompt)):
            one = prompt.rows([row])
            split = int(one.image[0, -1]) + 1 + self.family.extra
            frame = tuple(one.ids[0, :split].tolist())
            groups.setdefault(frame, {}).setdefault(one.length, []).append(row)
        out = []
        for frame, lengths in groups.items():
            members = []
            for rows in lengths.values():
                part = prompt.rows(rows)
                members.append(Group(torch.tensor(rows), part, self.plan(part)))
            out.append(Frame(int(members[0].prompt.image[0, 0]), len(frame), tuple(members), frame))
        return out

    # language model: runs -----------------------------------------------------------------------------------

    @torch.no_grad()
    def run(
        self,
        plan: Plan,
        hidden: Hidden,
        start: int = 0,
        first: int = 0,
        past: KeyValues | None = None,
        edits: dict[int, Edit] | None = None,
        capture: Iterable[int] = (),
        at: slice = slice(None),
        keep: bool = False,
        keys_only: bool = False,
        mask: Callable[[int, dict], dict] | None = None,
    ) -> Output:
        """Run layers start..L-1 on tokens first, first + 1, ... with `hidden` as residual stream at slot `start`.

        past: keys and values of the tokens before `first`. edits: {slot: function}; capture: slots to return
        (after edits), of the tokens `at`. keep: return keys and values of all tokens so far. keys_only:
        nobody needs the output of the last layer, only its keys and values. mask: may change the keyword
        arguments of a layer.
        """
        edits, capture = edits or {}, set(capture)
        last = len(self.layers) - 1
        store = KeyValues(past, keep=keep or keys_only, enough=last if keys_only else None)
        out = Output(None, keys=store if keep or keys_only else None)
        stop = first + hidden.shape[1]
        for slot in range(start, last + 2):
            if slot in edits:
                hidden = edits[slot](hidden)
            if slot in capture:
                out.hidden[slot] = hidden[:, at]
            if slot > last:
                break
            kwargs = plan.part(slot, first, stop)
            kwargs = mask(slot, kwargs) if mask else kwargs
            try:
                hidden = self._layer(slot, hidden, store, kwargs)
            except Enough:
                return out
        out.last = hidden[:, -1]
        return out

    def _layer(self, slot: int, hidden: Hidden, store: KeyValues | None, kwargs: dict) -> Hidden:
        """One layer of the language model; without a store, on the tokens given alone."""
        return _first(self.layers[slot](hidden, past_key_values=store, use_cache=True, **kwargs))

    def _words(self, ids: Int[Tensor, "batch token"]) -> Hidden:
        """Slot 0 of ordinary text."""
        return self.model.get_input_embeddings()(ids)

    @torch.no_grad()
    def run_last(
        self, plan: Plan, states: dict[int, Float[Tensor, "batch hidden"]], past: KeyValues
    ) -> dict[int, Float[Tensor, "batch hidden"]]:
        """The last token alone, entering at several slots at once, against the keys and values before it.

        states: {slot: the last token's vector there}; returns {slot: its vector at slot L}. All versions run
        side by side as queries that do not see each other: the whole sweep costs about one forward of one
        token per layer.
        """
        slots = sorted(states)
        active: list[Tensor] = []
        for slot in self.slots:
            active += [states[slot][:, None]] if slot in states else []
            if slot == len(self.layers) or not active:
                continue
            hidden = torch.cat([part.to(active[-1].device) for part in active], dim=1)
            kwargs = plan.variants(slot, hidden.shape[1])
            store = KeyValues(past, keep=False)
            active = [self._layer(slot, hidden, store, kwargs)]
        hidden = torch.cat([part.to(active[-1].device) for part in active], dim=1)
        return {slot: hidden[:, i] for i, slot in enumerate(slots)}

    @torch.no_grad()
    def forward(
        self,
        prompt: Prompt,
        images: ImageTokens | None = None,
        index=None,
        from_slot: int = 0,
        hidden: Hidden | None = None,
        edits: dict[int, Edit] | None = None,
        capture: Iterable[int] = (),
        keep: bool = False,
    ) -> Output:
        """A whole batch, padding and all: from slot 0 given image tokens, or from a slot given hidden states."""
        if hidden is None:
            hidden = self.embed(prompt, images, index)
        return self.run(self.plan(prompt), hidden, from_slot, edits=edits, capture=capture, keep=keep)

    @torch.no_grad()
    def contexts(self, frame: Frame, images: ImageTokens, **options) -> Output:
        """Everything up to the last image token, once per picture: keys and values; options as for `run`."""
        group = frame.groups[0]
        row = group.prompt.rows([0])
        head = Prompt(row.ids[:, : frame.split], row.mask[:, : frame.split], row.image)
        many = Prompt(*(x.expand(len(images), -1) for x in (head.ids, head.mask, head.image)))
        hidden = self.embed(many, images)
        return self.run(group.plan, hidden, keys_only=True, **options)

    @torch.no_grad()
    def ask(self, frame: Frame, group: Group, rows, past: KeyValues, **options) -> Output:
        """The question part of chosen rows of a group, against their pictures' keys and values, row by row."""
        ids = group.prompt.ids[rows, frame.split :].to(self.device)
        hidden = self._words(ids)
        return self.run(group.plan, hidden, first=frame.split, past=past, **options)

    # answers ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, last: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch vocabulary"]:
        """Next-token logits from the residual stream at slot L."""
        return self.model.lm_head(self.language.norm(last)).float()

    @torch.no_grad()
    def score(self, last: Float[Tensor, "batch hidden"], ids: Ids) -> tuple[Tensor, Tensor]:
        """Probability and logit of each candidate, [batch, role] each: sum and log-sum-exp over spellings."""
        logits = self.logits(last)
        ids = ids.to(logits.device)
        picked = logits.gather(1, ids.clamp(min=0).flatten(1)).reshape(ids.shape)
        logit = picked.masked_fill(ids < 0, -torch.inf).logsumexp(-1)
        return (logit - logits.logsumexp(-1, keepdim=True)).exp(), logit

    @torch.no_grad()
    def answer(
        self,
        images,
        questions: Sequence[str],
        words: Sequence[Sequence[str]],
        index=None,
        system: str | None = SYSTEM_TEXT,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Candidate probabilities of questions, one picture each; one row per question and word.

        images: pictures, or image tokens already encoded; `index` then gives the picture of each question
        (default: in order). words: the candidates of each question. Columns: item, word, probability, logit,
        top (the most probable next token of the whole vocabulary), first (whether that token is a spelling of
        the word).
        """
        if not isinstance(images, Tensor):
            images, same = self.distinct(images, progress)
            index = same if index is None else same[np.asarray(index)]
        index = np.arange(len(questions)) if index is None else np.asarray(index)
        ids = self.candidates(words)
        result = {}
        for rows, last in self.last_states(self.tokens(questions, system), images, index, progress):
            probability, logit = (x.cpu().numpy() for x in self.score(last, ids[rows]))
            top = self.logits(last).argmax(-1).cpu()
            for i, row in enumerate(rows):
                for k, word in enumerate(words[row]):
                    first = bool((ids[row, k] == top[i]).any())
                    name = self.tokenizer.decode([int(top[i])]).strip()
                    result[row, k] = (row, word, probability[i, k], logit[i, k], name, first)
        columns = ["item", "word", "probability", "logit", "top", "first"]
        return pd.DataFrame([result[key] for key in sorted(result)], columns=columns)

    def last_states(
        self, prompt: Prompt, images, index, progress: bool = False
    ) -> Iterator[tuple[np.ndarray, Float[Tensor, "batch hidden"]]]:
        """(rows, their last token at slot L) of a whole prompt, the image part computed once per picture."""

        def work(frame, pictures, groups):
            past = self.contexts(frame, pick(images, pictures)).keys
            for group, part, places in groups:
                yield group.rows[part].numpy(), self.ask(frame, group, part, past.rows(places)).last

        yield from self.each(prompt, index, work, progress)

    def each(
        self,
        prompt: Prompt,
        index,
        work: Callable,
        progress: bool = False,
        cost: float = 1.0,
        unit: str = "pictures",
    ):
        """Go through prompts picture by picture, in batches that fit into memory.

        index: the picture (any number) of each prompt. work(frame, pictures, groups) gets the batch's
        distinct pictures and [(group, rows inside the group, place of each row's picture in `pictures`)], and
        yields results; they are passed on once the batch is complete. cost: memory of the work as a multiple
        of a plain forward.
        """
        index = np.asarray(index)
        for frame in self.frames(prompt):
            pictures = np.unique(np.concatenate([index[group.rows.numpy()] for group in frame.groups]))

            def batch(chunk, frame=frame, pictures=pictures):
                mine, groups = pictures[chunk], []
                for group in frame.groups:
                    own = index[group.rows.numpy()]
                    inside = np.flatnonzero(np.isin(own, mine))
                    for part in np.array_split(inside, -(-len(inside) // len(mine)) or 1):
                        if len(part):
                            groups.append((group, part, np.searchsorted(mine, own[part])))
                return list(work(frame, mine, groups))

            size = max(1, int(self.batch(prompt.length, self.language.config.hidden_size) / cost))
            for _, results in run_batches(len(pictures), batch, size, progress, unit):
                yield from results

    # memory -------------------------------------------------------------------------------------------------

    def batch(self, tokens: int, width: int) -> int:
        """How many rows of so many tokens and so wide a stream fit into a part of the free memory."""
        per_row = tokens * width * self.dtype.itemsize * (16 + 3 * len(self.layers))
        gpu = self.device.type == "cuda"
        free = free_memory(self.device) // 2 if gpu else 2**29
        most = 64 if gpu else 24  # larger batches leave a CPU's caches: contexts of `reference` took 1.8 times as long
        return int(min(most, max(1, free // per_row)))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a GPU: what the driver calls free, and what torch holds without using it."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _first(output):
    return output if isinstance(output, Tensor) else output[0]


class Memory:
    """Keys and values of pictures that come `again`, kept from their first run to their second; `room` in bytes."""

    def __init__(self, vlm: VLM, images: ImageTokens, again: Iterable[int] = (), room: int | None = None):
        self.vlm, self.images, self.again = vlm, images, set(again)
        gpu = vlm.device.type == "cuda"
        free = free_memory(vlm.device) // 4 if gpu else 2**27
        self.room = free if room is None else room
        self.held: dict[tuple, KeyValues] = {}
        self.seen: set[tuple] = set()

    def keys(self, frame: Frame, pictures: np.ndarray) -> KeyValues:
        """Those of pictures up to the last image token, row by row; only pictures that are not held are run."""
        keys = [(frame.prefix, int(p)) for p in pictures]
        new = [k for k, key in enumerate(keys) if key not in self.held]
        if not new:
            return KeyValues.stacked([self.held.pop(key) for key in keys])
        batch = self.vlm.contexts(frame, pick(self.images, pictures[new])).keys
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


@lru_cache(maxsize=32)
def _patch_order(order: str, side: int, merge: int, window: int | None) -> Tensor:
    raster = torch.arange((side * merge) ** 2).reshape(side, merge, side, merge)
    if order in ("raster", "class"):
        return raster.flatten()
    blocks = raster.permute(0, 2, 1, 3).reshape(side * side, merge * merge)
    if order == "windows":  # windows of `window` tokens a side, each holding its tokens in raster order
        tokens = torch.arange(side * side).reshape(side, side)
        strips = range(0, side, window)
        blocks = blocks[torch.cat([tokens[r : r + window, c : c + window].flatten() for r in strips for c in strips])]
    return blocks.flatten()


def _window(config, family: Family) -> int | None:
    """Window side in image tokens (Qwen2.5-VL)."""
    if family.order != "windows":
        return None
    vision = config.vision_config
    return vision.window_size // vision.patch_size // vision.spatial_merge_size


def _merge(family: Family, config) -> int:
    """Encoder patches per image token and side: the configuration where it says so, else the record."""
    for part, key in ((config, "scale_factor"), (config.vision_config, "spatial_merge_size")):
        if isinstance(getattr(part, key, None), int):
            return getattr(part, key)
    return family.merge


def _grid(family: Family, config, merge: int) -> Grid:
    """The family's grid, fitted to the sizes in the configuration."""
    vision, grid = config.vision_config, family.grid
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    pixels = patch * merge
    side = grid.side
    if not family.packed:  # a fixed picture size
        size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        side = size // patch // merge
    if (side, pixels) == (grid.side, grid.pixels):
        return grid
    entity = max(1, side // 6)
    gap = min(entity, (side - 3 * entity) // 2)
    return Grid(family.name, side, pixels, entity, gap, (side // 3, side - 2 * (side // 3), side // 3))
