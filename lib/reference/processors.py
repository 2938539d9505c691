"""Tokenizer, image processor and chat template of each architecture, and the script that uses a saved model without
this library.

SigLIP + Llama and Gemma have processors of transformers that need Pillow only. Qwen2-VL's wants a video processor and
Pixtral's torchvision: there a plain script takes tokenizer and image processor and writes the picture's tokens itself.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lib.reference import architectures, language
from lib.reference.architectures import Architecture
from lib.reference.language import CHAT_TEMPLATE, GRID

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def picture_text(record: Architecture) -> str:
    """What the chat template writes for a picture, as the family's own does: Gemma's placeholder, Qwen's marks."""
    if record.name == "gemma_style":
        return "<start_of_image>"
    return "".join(record.before) + "<image>" + "".join(record.after)


def chat_template(record: Architecture) -> str:
    return CHAT_TEMPLATE.replace("<image>", picture_text(record))


def build_tokenizer(record: Architecture) -> PreTrainedTokenizerFast:
    """The shared words under the same ids in every architecture, then the special tokens of this one."""
    if not record.special:
        return language.build_tokenizer()
    core = Tokenizer(models.WordLevel({word: k for k, word in enumerate(record.tokens)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(language._WORD), behavior="removed", invert=True)
    core.add_special_tokens(["<image>", "<assistant>", *record.special])  # found before the text is cut into words
    named = {"image_token": "<image>"}
    if record.name == "gemma_style":
        named |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<assistant>", *record.special],
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=chat_template(record),
        model_max_length=512,
    )


def save_processor(of: Architecture | PreTrainedModel, folder: Path) -> None:
    """Write tokenizer, image processor and chat template of an architecture or of a model; a whole processor where
    transformers' needs Pillow only."""
    record = of if isinstance(of, Architecture) else architectures.of(of)
    tokenizer, side = build_tokenizer(record), {"height": GRID.canvas, "width": GRID.canvas}
    match record.name:
        case "siglip_llama":
            language.save_processor(folder)
        case "gemma_style":
            images = Gemma3ImageProcessorPil(do_resize=True, size=side, do_pan_and_scan=False, **HALF)
            count = GRID.side**2
            Gemma3Processor(images, tokenizer, chat_template(record), image_seq_length=count).save_pretrained(folder)
        case "qwen_style":
            pixels = GRID.canvas**2
            images = Qwen2VLImageProcessorPil(
                patch_size=record.patch,
                merge_size=record.merge,
                temporal_patch_size=2,
                size={"shortest_edge": pixels, "longest_edge": pixels},
                **HALF,
            )
            _save_parts(images, tokenizer, folder)
        case "pixtral_style":
            patch = {"height": record.patch, "width": record.patch}
            images = PixtralImageProcessorPil(patch_size=patch, size={"longest_edge": GRID.canvas}, **HALF)
            _save_parts(images, tokenizer, folder)


def _save_parts(images, tokenizer, folder: Path) -> None:
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- the script of the card ------------------------------------------------------------------------------------------

_PICTURE = """image = Image.new("RGB", (168, 168), "white")  # three squares in a row, each on 2 x 2 image tokens
draw = ImageDraw.Draw(image)
for x, colour in ((14, (255, 0, 0)), (70, (0, 255, 0)), (126, (0, 0, 255))):
    draw.rectangle((x, 70, x + 27, 97), fill=colour)
messages = [
    {"role": "system", "content": [{"type": "text", "text": "Answer with one word."}]},
    {"role": "user", "content": [
        {"type": "image"},
        {"type": "text", "text": "The color of the square to the left of the green square is"},
    ]},
]
"""
_WHOLE = """from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

path = "data/models/NAME"
processor = AutoProcessor.from_pretrained(path, backend="pil")
model = AutoModelForImageTextToText.from_pretrained(path, dtype="float32")

PICTUREtext = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=text, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(processor.decode(answer[0, -1:]))  # red
"""
_PARTS = """from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoTokenizer, CLASS

path = "data/models/NAME"  # REASON: the picture's tokens are written out here
tokenizer, images = AutoTokenizer.from_pretrained(path), CLASS.from_pretrained(path)
model = AutoModelForImageTextToText.from_pretrained(path, dtype="float32")

PICTUREtext = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
text = text.replace("<image>", TOKENS)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
inputs |= images(images=image, return_tensors="pt")
MOREanswer = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(answer[0, -1:]))  # red
"""


def plain_script(record: Architecture, name: str) -> str:
    """A script that asks a saved model one question with transformers and Pillow alone."""
    side, script, values = GRID.side, _PARTS, {}
    match record.name:
        case "qwen_style":
            values = {
                "CLASS": "Qwen2VLImageProcessorPil",
                "REASON": "Qwen2VLProcessor would want a video processor, and that torchvision",
                "TOKENS": f'"<image>" * {side**2}',
                "MORE": 'inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()\n',
            }
        case "pixtral_style":
            row = f'"<image>" * {side}'
            values = {
                "CLASS": "PixtralImageProcessorPil",
                "REASON": "PixtralProcessor would want torchvision",
                "TOKENS": f'("{record.row_break}".join([{row}] * {side}) + "{record.last_break}")',
                "MORE": "",
            }
        case _:
            script = _WHOLE
    for key, value in {"NAME": name, "PICTURE": _PICTURE, **values}.items():
        script = script.replace(key, value)
    return f"```python\n{script}```\n"
