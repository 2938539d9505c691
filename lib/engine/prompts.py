"""Questions as token ids: chat templates, image tokens written out, candidate answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int

from lib import places
from lib.engine.families import Family
from lib.engine.tensors import Ids
from lib.errors import UserError
from lib.stimuli.grids import Grid
from lib.stimuli.questions import SYSTEM_TEXT


@dataclass(frozen=True)
class Prompt:
    """Tokenised questions, padded on the left; the last token of every row predicts the answer."""

    ids: Int[torch.Tensor, "batch token"]
    mask: Bool[torch.Tensor, "batch token"]  # False where padded
    image: Int[torch.Tensor, "batch image_token"]  # positions of image tokens in raster order, picture after picture

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def rows(self, index) -> Prompt:
        """Chosen rows, without padding that none of them needs."""
        index = torch.as_tensor(index, dtype=torch.long)
        cut = int((~self.mask[index]).sum(1).min())
        return Prompt(self.ids[index, cut:], self.mask[index, cut:], self.image[index] - cut)


class PromptWriter:
    """Writes questions about pictures as the chat template and the image processor of a checkpoint would.

    longest: the number of positions of the language model, None where it has no limit.
    """

    def __init__(
        self, tokenizer, template: str | None, family: Family, grid: Grid, image_id: int, longest: int | None, name: str
    ):
        self.tokenizer, self.template, self.family, self.grid = tokenizer, template, family, grid
        self.image_id, self.longest, self.name = image_id, longest, name
        self.per_picture = grid.side**2 + family.tokens_after_grid  # image tokens of a picture in the prompt
        self.raster = slice(grid.side**2)  # which of them stand for places, in raster order
        self._texts: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}
        self._words: dict[str, tuple[int, ...]] = {}
        self.dropped: dict[str, tuple[str, ...]] = {}  # spellings left out so far, by word

    def text(self, question: str, system: str | None = SYSTEM_TEXT, images: int = 1) -> str:
        """The chat text of a question, with every picture written out as its image tokens."""
        token = self.tokenizer.convert_ids_to_tokens(self.image_id)
        placeholder = self.family.placeholder or token
        for reserved in (token, placeholder):
            if reserved in question or reserved in (system or ""):
                raise UserError(
                    f"The question {question[:80]!r} contains {reserved}, which stands for a picture in {self.name}: "
                    "leave it out, the picture is put before the question."
                )
        text = chat(self.tokenizer, self.template, question, system, images, placeholder, self.name)
        return self.picture(token).join(text.split(placeholder))

    def picture(self, token: str) -> str:
        """What is written for a picture: its image tokens and what the family's processor puts around them."""
        side, record = self.grid.side, self.family
        rows = (token * side + record.row_break) * (side - 1) + token * side + record.last_break
        return record.before + rows + token * record.tokens_after_grid + record.after

    def tokens(self, questions: Sequence[str], system: str | None = SYSTEM_TEXT, images: int = 1) -> Prompt:
        """Tokenised questions as one batch, padded on the left; `images` pictures before each question."""
        if isinstance(questions, str) or not len(questions):
            raise UserError("Questions are a list of at least one text.")
        rows = [self._tokenised(question, system, images) for question in questions]
        length = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id or 0
        out = torch.full((len(rows), length), pad), torch.zeros(len(rows), length, dtype=torch.bool)
        for i, (ids, _) in enumerate(rows):
            out[0][i, length - len(ids) :] = ids
            out[1][i, length - len(ids) :] = True
        return Prompt(*out, torch.stack([positions + length - len(ids) for ids, positions in rows]))

    def _tokenised(self, question: str, system: str | None, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [token] of one question and the positions [image token] of its pictures in raster order."""
        key = (question, system, images)
        if key not in self._texts:
            text = self.text(*key)
            special = not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))
            ids = torch.tensor(self.tokenizer(text, add_special_tokens=special)["input_ids"])
            positions, per_picture = (ids == self.image_id).nonzero()[:, 0], self.per_picture
            if len(positions) != images * per_picture:
                raise UserError(
                    f"{self.name}: the prompt has {len(positions)} image tokens instead of {images * per_picture}; "
                    "the tokenizer does not know the image token."
                )
            if self.longest and len(ids) > self.longest:
                raise UserError(
                    f"{self.name} has {self.longest} positions, and this prompt has {len(ids)} tokens "
                    f"({question[:40]!r}...): ask a shorter question."
                )
            positions = positions.reshape(images, per_picture)[:, self.raster].reshape(-1)
            self._texts[key] = (ids, positions)
        return self._texts[key]

    def candidates(self, words: Sequence[Sequence[str]] | Sequence[str]) -> Ids:
        """Token ids of the spellings of words: [row, role, spelling], padded with -1, no id twice.

        words: one list of words per row (shorter rows end in roles without ids), or one list for a single row. The
        spellings of a word are itself in lower case and capitalised, each with and without a leading space. Those of
        several tokens cannot be the next token: they are left out and named in `dropped`; at least one must remain.
        """
        table = [words] if len(words) and isinstance(words[0], str) else words
        if not len(table) or not all(len(row) for row in table):
            raise UserError("Candidates are lists of at least one word each, one list per question.")
        rows = [[self._spellings(word) for word in row] for row in table]
        roles, width = max(map(len, rows)), max(len(ids) for row in rows for ids in row)
        out = torch.full((len(rows), roles, width), -1)
        for i, row in enumerate(rows):
            for k, spellings in enumerate(row):
                out[i, k, : len(spellings)] = torch.tensor(spellings)
        return out

    def _spellings(self, word: str) -> tuple[int, ...]:
        """Ids of the spellings of a word that are one token; UserError where none is."""
        if word not in self._words:
            bare = word.strip()
            capital = bare[:1].upper() + bare[1:]
            forms = dict.fromkeys((bare.lower(), capital, " " + bare.lower(), " " + capital))
            single = {form: self._single(form) for form in forms}
            ids = tuple(dict.fromkeys(i for i in single.values() if i is not None))
            if not ids:
                pieces = self._pieces(bare.lower())
                raise UserError(
                    f"The word {bare!r} is not one token for {self.name} in any spelling: {bare.lower()!r} becomes "
                    f"{pieces}. Choose another word."
                )
            self._words[word] = ids
            dropped = tuple(form for form, i in single.items() if i is None)
            if dropped:
                self.dropped[bare] = dropped
                _tell_runner(self.name, bare, dropped)
        return self._words[word]

    def _single(self, form: str) -> int | None:
        """The id of a spelling that is one token, None where it takes several."""
        ids = self.tokenizer(form, add_special_tokens=False)["input_ids"]
        if len(ids) > 1 and not self.tokenizer.decode(ids[:1]).strip():
            ids = ids[1:]  # sentencepiece writes a leading space as a piece of its own
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None

    def _pieces(self, form: str) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self.tokenizer(form, add_special_tokens=False)["input_ids"])


def _tell_runner(model: str, word: str, dropped: tuple[str, ...]) -> None:
    """Leave the spellings of a word that were dropped for the manifest of the run."""
    if folder := places.staging():
        with open(folder / places.DROPPED, "a", encoding="utf-8") as file:
            file.write(json.dumps({"model": model, "word": word, "spellings": dropped}) + "\n")


def chat(tokenizer, template, question, system, images, placeholder, name) -> str:
    """The chat template applied to a question; templates differ in the forms they take, so try several."""
    pictures = [{"type": "image"} for _ in range(images)]
    user = {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}
    trials = [[user]]
    if system:
        both = {"role": "user", "content": [*pictures, {"type": "text", "text": f"{system}\n{question}"}]}
        trials = [
            [{"role": "system", "content": [{"type": "text", "text": system}]}, user],
            [{"role": "system", "content": system}, user],
            [both],
        ]
    problem = "it has no chat template"
    for messages in trials:
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise jinja errors of many kinds
            problem = str(error)
            continue
        if question in text and (not system or (system in text and "{'type'" not in text)):
            if text.count(placeholder) == images:
                return text
            problem = f"its chat template writes {text.count(placeholder)} pictures instead of {images}"
    raise UserError(f"Cannot write a prompt for {name}: {problem}.")
