"""The small language of the reference models: vocabulary, tokenizer, chat template and processor files."""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lib.stimuli import facts, questions
from lib.stimuli.grids import GRIDS
from lib.stimuli.scenes import COLOURS, OBJECT_NAMES, SHAPES, Entity

GRID = GRIDS["reference"]
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<assistant>", "<unk>")
IMAGE_TOKEN_ID = SPECIAL.index("<image>")
ROWS = tuple(f"row{k}" for k in range(1, GRID.side + 1))
COLUMNS = tuple(f"column{k}" for k in range(1, GRID.side + 1))
SIGNS = ("left", "right", "level", "above", "below")  # of one thing seen from another, along the two axes
EXTREMES = {"left": "leftmost", "right": "rightmost", "above": "topmost", "below": "lowest"}
ORDINALS = ("first", "second", "third", "fourth")
FURNITURE = ("chair", "table", "armchair")  # What'sUp references
_WORD = r"a\(n\)|<[a-z/]+>|\w+|[^\w\s]"

CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{% if message['role'] == 'assistant' %}<assistant>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, special ones first; the words of all question forms, statements and descriptions."""
    shape, other = Entity("square", "red"), Entity("heart", "blue")
    texts = [
        questions.SYSTEM_TEXT,
        "an empty scene",
        "next to",
        "how many",
        "what",
        "scene",
        "list",
        "from",
        "picture of",
    ]
    for direction in questions.DIRECTIONS:
        texts += [
            questions.neighbour_question(setting, direction, shape) for setting in ("squares", "shapes", "objects")
        ]
        texts.append(questions.whatsup_question(direction, "chair"))
    for form in ("reference_point", "is_the"):
        for options in (("left", "right"), ("above", "below")):
            texts.append(questions.side_question(str(shape), str(other), options, form))
    texts += [facts.colour_question("star"), facts.shape_question("red"), facts.presence_question(other)]
    texts += [facts.NUMBER_QUESTION, facts.NOTHING, *facts.NUMBERS]
    words = {word for text in texts for word in re.findall(_WORD, text.lower())}
    words |= {*COLOURS, *SHAPES, *OBJECT_NAMES, *ROWS, *COLUMNS, *SIGNS, *EXTREMES.values(), *ORDINALS, *FURNITURE}
    words |= {"yes", "no", "and", "in", "with", "there", ",", ":", ".", "?"}
    return [*SPECIAL, *sorted(words)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, lower-casing: every spelling of a word is the same single token."""
    core = Tokenizer(models.WordLevel({word: k for k, word in enumerate(vocabulary())}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<assistant>"],
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def save_processor(folder: Path) -> None:
    """Write tokenizer, image processor and processor files, loadable with `AutoProcessor.from_pretrained`."""
    side = {"height": GRID.canvas, "width": GRID.canvas}
    images = SiglipImageProcessorPil(do_resize=True, size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=GRID.pixels,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
