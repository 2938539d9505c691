"""One adapter over transformers' vision-language models: `load` gives a `VLM`, an image encoder and a language model
with the tokenizer that goes with them.

The model is transformers' own; nothing of it is re-implemented. What is done with the halves is in
`lib.engine.encoder` and `lib.engine.language`; here are the few calls that need both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lib.engine.encoder import ImageEncoder, distinct
from lib.engine.families import Family
from lib.engine.language import LanguageModel, scores
from lib.engine.loading import read
from lib.engine.plans import Output
from lib.engine.prompts import Prompt, PromptWriter
from lib.engine.tensors import Ids, ImageTokens
from lib.errors import UserError
from lib.stimuli.grids import Grid
from lib.stimuli.questions import SYSTEM_TEXT


def load(
    name: str | Path = "reference",
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    attn: str = "sdpa",
    revision: str | None = None,
    device_map=None,
    grid: Grid | None = None,
    check: bool | None = None,
) -> VLM:
    """A model ready for experiments.

    name: an embedded model (reference, joint, ...), a short name from lib.engine.families.CHECKPOINTS, a hub id, or a
    folder. device: "auto" takes a GPU where there is one. dtype: when not given, float32 on a CPU and bfloat16 on a GPU
    that computes in it (`lib.engine.loading.default_dtype`). attn: "sdpa" or "eager". device_map: passed to
    transformers ("auto" spreads a large model over GPUs and CPU); `device` is then ignored. grid: another token grid,
    for encoders that take pictures of any size. check: hold the adapter against transformers on these very weights
    (`lib.engine.certificate`) when the checkpoint is used for the first time; by default only where no record of its
    family is written and one has to be derived.
    """
    found = read(name, device, dtype, attn, revision, device_map)
    if found.family is None:
        from lib.engine.derived.reading import derived  # it knows the adapter

        vlm = derived(found, grid)
    else:
        vlm = VLM(found.model, found.tokenizer, found.processor, found.family, grid, found.name, found.template)
    if check or (check is None and found.family is None):
        from lib.engine.certificate import require

        require(vlm, found.source, revision)
    return vlm


class VLM:
    """A vision-language model with its tokenizer and image processor; see `load`.

    Its halves: `encoder` (ImageEncoder) and `language` (LanguageModel); `prompts` (PromptWriter) writes questions.
    """

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
        self.model, self.config, self.family, self.name = model.eval(), model.config, family, name
        self.tokenizer, self.processor = tokenizer, processor
        ids = (getattr(self.config, key, None) for key in ("image_token_id", "image_token_index"))
        image_id = next(i for i in ids if i is not None)
        self.encoder = ImageEncoder(model, processor, family, grid, name)
        self.grid, self.encode, self.projector = self.encoder.grid, self.encoder.encode, self.encoder.projector
        self.language = LanguageModel(model, family, image_id, self.grid.side, self.encoder.merge)
        self.layers, self.logits = self.language.layers, self.language.logits
        longest = getattr(self.language.config, "max_position_embeddings", None)
        self.prompts = PromptWriter(tokenizer, template, family, self.grid, image_id, longest, name)
        self.tokens, self.candidates = self.prompts.tokens, self.prompts.candidates

    @property
    def slots(self) -> range:
        """0..L of the language model."""
        return self.language.slots

    @property
    def encoder_slots(self) -> range:
        """0..E of the image encoder."""
        return self.encoder.slots

    @property
    def device(self) -> torch.device:
        return self.language.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def tolerance(self) -> float:
        """How far probabilities of runs that should agree may lie apart: results of kernels depend on the shape of a
        batch, in the last of bfloat16's 8 bits (not yet measured on a GPU)."""
        return 1e-4 if self.dtype == torch.float32 else 3e-2

    def distinct(self, images: Sequence[Image.Image], progress: bool = False) -> tuple[ImageTokens, np.ndarray]:
        """Image tokens of the distinct pictures among images, and for each image its row there."""
        first, index = distinct(images)
        return self.encode([images[i] for i in first], progress=progress), index

    def forward(self, prompt: Prompt, images: ImageTokens | None = None, index=None, **options) -> Output:
        """A whole batch from image tokens, padding and all; options as for `LanguageModel.forward`."""
        return self.language.forward(prompt, images, index, **options)

    def score(self, last: Float[Tensor, "batch hidden"], ids: Ids) -> tuple[Tensor, Tensor]:
        """Probability and logit of each candidate, [batch, role] each, from the last token at slot L."""
        return scores(self.logits(last), ids)

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

        images: pictures, or image tokens already encoded; `index` then gives the picture of each question (default: in
        order). words: the candidates of each question. Columns: item, word, probability, logit, top (the most probable
        next token of the whole vocabulary), is_top (whether that token is a spelling of the word).
        """
        check_lists(images, questions, words, index)
        if not isinstance(images, Tensor):
            images, same = self.distinct(images, progress)
            index = same if index is None else same[np.asarray(index)]
        index = np.arange(len(questions)) if index is None else np.asarray(index)
        ids = self.candidates(words)
        result = {}
        for rows, last in self.language.last_states(self.tokens(questions, system), images, index, progress):
            logits = self.logits(last)
            probability, logit = (x.cpu().numpy() for x in scores(logits, ids[rows]))
            top = logits.argmax(-1).cpu()
            for i, row in enumerate(rows):
                for k, word in enumerate(words[row]):
                    is_top = bool((ids[row, k] == top[i]).any())
                    name = self.tokenizer.decode([int(top[i])]).strip()
                    result[row, k] = (row, word, probability[i, k], logit[i, k], name, is_top)
        columns = ["item", "word", "probability", "logit", "top", "is_top"]
        return pd.DataFrame([result[key] for key in sorted(result)], columns=columns)


def check_lists(images, questions, words, index) -> None:
    """A UserError where pictures, questions, candidates and index do not belong together."""
    if isinstance(questions, str) or isinstance(words, str) or (len(words) and isinstance(words[0], str)):
        raise UserError("Give a list of questions, and for each a list of candidate words.")
    if not len(questions) or len(questions) != len(words):
        raise UserError(f"{len(questions)} questions and {len(words)} lists of candidates: give one list per question.")
    if index is None and len(images) != len(questions):
        raise UserError(
            f"{len(images)} pictures and {len(questions)} questions: give one picture per question, or their `index`."
        )
    if index is not None and len(index) != len(questions):
        raise UserError(f"`index` has {len(index)} entries for {len(questions)} questions: give one per question.")
    if index is not None and not all(0 <= int(i) < len(images) for i in index):
        raise UserError(f"`index` must name pictures 0..{len(images) - 1}, not {sorted(set(map(int, index)))}.")
