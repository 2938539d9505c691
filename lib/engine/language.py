"""The language half of a model: its residual stream read, written and rerun exactly.

Every layer is called with exactly the keyword arguments that transformers' own forward pass hands to it (a `Plan`,
recorded with hooks), so rotary positions, sliding windows and masks of every family are right by construction, and a
run can start at any slot, at any token, against cached keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.engine.batching import batch_size, input_device, row_bytes, run_batches
from lib.engine.families import Family
from lib.engine.hooks import first_output, hooks
from lib.engine.keys_values import KeyValues, StopForward
from lib.engine.plans import Frame, Group, Output, Plan
from lib.engine.planted import marks, sees_rows
from lib.engine.positions import RASTER, SCHEMES, placed
from lib.engine.prompts import Prompt
from lib.engine.tensors import Edit, Hidden, Ids, ImageTokens, pick, put
from lib.errors import unknown


class LanguageModel:
    """Embeddings, layers, final norm and head of a model; grid side and merge are those of its image encoder.

    plain_because: why layers run on all tokens every time, so that nothing inside them can be read or written.
    wide_because: why the vector of a token is more than its residual stream. None in families with a written record.
    additive: whether it is known how attention and the MLP add up to the residual stream, and that to the logits.
    """

    plain_because: str | None = None
    wide_because: str | None = None
    additive: bool = True

    def __init__(self, model, family: Family, image_id: int, side: int, merge: int):
        self.model, self.base, self.family = model, model.model, family
        self.image_id, self.side, self.merge = image_id, side, merge
        text = self.base.get_submodule(family.language)
        self.layers, self.norm, self.config = text.layers, text.norm, text.config
        self.own_layers = self.layers  # transformers' own modules
        self.marks = marks(model.config)
        self._plans: dict[tuple, Plan] = {}

    @property
    def slots(self) -> range:
        """0..L."""
        return range(len(self.layers) + 1)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return input_device(self.model)

    def batch_size(self, tokens: int) -> int:
        """Prompts of so many tokens per batch."""
        return batch_size(tokens, self.config.hidden_size, len(self.layers), self.model.dtype, self.device)

    def row_bytes(self, tokens: int) -> int:
        """Working memory of one prompt of so many tokens."""
        return row_bytes(tokens, self.config.hidden_size, len(self.layers), self.model.dtype)

    # plans --------------------------------------------------------------------------------------------------

    def embed(self, prompt: Prompt, images: ImageTokens, index=None) -> Hidden:
        """Slot 0 of prompts: text embeddings with image tokens in their positions.

        images: image tokens, one row per prompt (several pictures one after the other), or chosen by `index`.
        """
        ids = prompt.ids.to(self.device)
        table = self.model.get_input_embeddings()
        text = table(ids.masked_fill(ids == self.image_id, 0))
        if self.family.tokens_after_grid:
            text = torch.where((ids == self.image_id)[..., None], self.base.image_newline.to(text), text)
        images = images if index is None else pick(images, index)
        return put(text, prompt.image.to(text.device), images.reshape(len(prompt), -1, images.shape[-1]))

    def words(self, ids: Int[Tensor, "batch token"]) -> Hidden:
        """Slot 0 of text without pictures."""
        return self.model.get_input_embeddings()(ids)

    def _positions(self, prompt: Prompt) -> Tensor:
        """Position ids as transformers makes them, or as `dual_mechanisms` of a calibration model asks."""
        mask = prompt.mask.to(self.device)
        scheme = self.marks.get("image_positions", RASTER)
        if self.family.positions != "mrope" or "image_positions" in self.marks:
            return placed(mask, prompt.image.to(self.device), self.side, scheme)
        side = self.side * self.merge
        pictures = prompt.image.numel() // self.side**2
        ids = prompt.ids.to(self.device)
        positions, _ = self.base.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.image_id).int(),
            image_grid_thw=torch.tensor([[1, side, side]] * pictures, device=self.device),
            attention_mask=mask.int(),
        )
        return positions

    def with_positions(self, scheme: str) -> LanguageModel:
        """The same weights with image tokens at other positions: one of `positions.SCHEMES`."""
        if scheme not in SCHEMES:
            raise unknown("position scheme", scheme, SCHEMES)
        other = copy.copy(self)
        other.marks, other._plans = self.marks | {"image_positions": scheme}, {}
        return other

    def _mask(self, prompt: Prompt) -> Tensor:
        mask = prompt.mask.to(self.device)
        if self.marks.get("image_attention") not in ("self", "rows"):
            return mask.long()
        image = prompt.image.to(self.device)
        own = torch.eye(prompt.length, dtype=torch.bool, device=self.device)
        seen = torch.ones_like(own).tril() & mask[:, None, :]
        if self.marks["image_attention"] == "rows":
            seen = sees_rows(seen, image, self.side) | own
        else:
            picture = torch.zeros_like(mask).scatter(1, image, True)
            seen = (seen & ~(picture[:, :, None] & picture[:, None, :])) | own
        low = torch.finfo(self.model.dtype).min
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device).masked_fill(~seen, low)[:, None]

    @torch.no_grad()
    def plan(self, prompt: Prompt) -> Plan:
        """What transformers hands to each layer for these prompts; one row when all are alike, without padding."""
        if not (prompt.mask.all() and (prompt.image == prompt.image[0]).all()):
            return self._recorded(prompt)
        key = (prompt.length, tuple(prompt.image[0].tolist()))
        if key not in self._plans:
            self._plans[key] = self._recorded(prompt.rows([0]))
        return self._plans[key]

    def _recorded(self, prompt: Prompt) -> Plan:
        """The plan of these very prompts, from transformers' forward pass, which ends at the last layer."""
        ids = prompt.ids.to(self.device)
        extra = {"token_type_ids": (ids == self.image_id).long()} if self.family.bidirectional else {}
        seen: dict[int, dict] = {}

        def recorder(layer):
            def record(module, args, kwargs):
                seen[layer] = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "use_cache")}
                if layer == len(self.layers) - 1:
                    raise StopForward

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
            except StopForward:
                pass
        return Plan(tuple(seen[i] for i in range(len(self.layers))), prompt.length)

    def frames(self, prompt: Prompt) -> list[Frame]:
        """Prompts without padding, in frames (equal up to the last image token) and groups (equal length)."""
        groups: dict = {}
        for row in range(len(prompt)):
            one = prompt.rows([row])
            frame = tuple(one.ids[0, : self._stretch(one)[1]].tolist())
            groups.setdefault(frame, {}).setdefault(one.length, []).append(row)
        out = []
        for frame, lengths in groups.items():
            members = []
            for rows in lengths.values():
                part = prompt.rows(rows)
                members.append(Group(torch.tensor(rows), part, self.plan(part)))
            out.append(Frame(self._stretch(members[0].prompt)[0], len(frame), tuple(members), frame))
        return out

    def _stretch(self, prompt: Prompt) -> tuple[int, int]:
        """(position of the first image token, position after the last) of a prompt without padding."""
        return int(prompt.image[0, 0]), int(prompt.image[0, -1]) + 1 + self.family.tokens_after_grid

    # runs ---------------------------------------------------------------------------------------------------

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

        past: keys and values of the tokens before `first`. edits: {slot: function}; capture: slots to return (after
        edits), of the tokens `at`. keep: return keys and values of all tokens so far. keys_only: nobody needs the
        output of the last layer, only its keys and values. mask: may change the keyword arguments of a layer.
        """
        edits, capture = edits or {}, set(capture)
        last = len(self.layers) - 1
        store = KeyValues(past, keep=keep or keys_only, stop_after=last if keys_only else None)
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
                hidden = first_output(self.layers[slot](hidden, past_key_values=store, use_cache=True, **kwargs))
            except StopForward:
                return out
        out.last = hidden[:, -1]
        return out

    @torch.no_grad()
    def run_last(
        self, plan: Plan, states: dict[int, Float[Tensor, "batch version hidden"]], past: KeyValues
    ) -> Float[Tensor, "batch version hidden"]:
        """The last token alone, entering at several slots at once, against the keys and values before it.

        states: {slot: versions of the last token's vector there}; returns their vectors at slot L, by slot and version.
        All versions run side by side as queries that do not see each other: the whole sweep costs about one forward of
        one token per layer.
        """
        active: list[Tensor] = []
        for slot in self.slots:
            active += [states[slot]] if slot in states else []
            if slot == len(self.layers) or not active:
                continue
            hidden = torch.cat([part.to(active[-1].device) for part in active], dim=1)
            kwargs = plan.variants(slot, hidden.shape[1])
            store = KeyValues(past, keep=False)
            active = [first_output(self.layers[slot](hidden, past_key_values=store, use_cache=True, **kwargs))]
        return torch.cat([part.to(active[-1].device) for part in active], dim=1)

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
    def prefill(self, frame: Frame, images: ImageTokens, **options) -> Output:
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
        return self.run(group.plan, self.words(ids), first=frame.split, past=past, **options)

    def each(
        self, prompt: Prompt, index, work: Callable, progress: bool = False, cost: float = 1.0, unit: str = "pictures"
    ):
        """Go through prompts picture by picture, in batches that fit into memory.

        index: the picture (any number) of each prompt. work(frame, pictures, groups) gets the batch's distinct pictures
        and [(group, rows inside the group, row of each one's picture in `pictures`)], and yields results; they are
        passed on once the batch is complete. cost: memory of the work as a multiple of a plain forward.
        """
        index = np.asarray(index)
        for frame in self.frames(prompt):
            pictures = np.unique(np.concatenate([index[group.rows.numpy()] for group in frame.groups]))

            def batch(chunk, frame=frame, pictures=pictures):
                chosen, groups = pictures[chunk], []
                for group in frame.groups:
                    own = index[group.rows.numpy()]
                    inside = np.flatnonzero(np.isin(own, chosen))
                    for part in np.array_split(inside, -(-len(inside) // len(chosen)) or 1):
                        if len(part):
                            groups.append((group, part, np.searchsorted(chosen, own[part])))
                return list(work(frame, chosen, groups))

            size = max(1, int(self.batch_size(prompt.length) / cost))
            for _, results in run_batches(len(pictures), batch, size, progress, unit):
                yield from results

    def last_states(
        self, prompt: Prompt, images, index, progress: bool = False
    ) -> Iterator[tuple[np.ndarray, Float[Tensor, "batch hidden"]]]:
        """(rows, their last token at slot L) of a whole prompt, the image part computed once per picture."""

        def work(frame, pictures, groups):
            past = self.prefill(frame, pick(images, pictures)).keys
            for group, part, row_of in groups:
                yield group.rows[part].numpy(), self.ask(frame, group, part, past.rows(row_of)).last

        yield from self.each(prompt, index, work, progress)

    # answers ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, last: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch vocabulary"]:
        """Next-token logits from the residual stream at slot L."""
        return self.model.lm_head(self.norm(last)).float()


def scores(logits: Float[Tensor, "batch vocabulary"], ids: Ids) -> tuple[Tensor, Tensor]:
    """Probability and logit of each candidate, [batch, role] each: sum and log-sum-exp over spellings."""
    ids = ids.to(logits.device)
    picked = logits.gather(1, ids.clamp(min=0).flatten(1)).reshape(ids.shape)
    logit = picked.masked_fill(ids < 0, -torch.inf).logsumexp(-1)
    return (logit - logits.logsumexp(-1, keepdim=True)).exp(), logit
