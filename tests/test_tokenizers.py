"""The true vocabularies of Qwen, Pixtral and Llama 3, read from packages that ship them: every question form and every
candidate of every setting, the place of image tokens, and Pixtral's official picture encoder against ours.

The packages are the extra `vocabularies`; without them these tests are skipped. The chat templates below are written
for these tests: they put out the same text as those of the published checkpoints for a system text and a user turn
with pictures before text.
"""

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lib.engine.families import family
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.stimuli.grids import GRIDS
from lib.stimuli.questions import DIRECTIONS, SETTINGS, SYSTEM_TEXT, neighbour_question, side_question, whatsup_question
from lib.stimuli.scenes import OBJECT_NAMES, entities
from tests import tiny

# Words of What'sUp's photographs and of the COCO-spatial questions
WHATSUP = ("mug", "bowl", "cup", "fork", "book", "chair", "table")
# Regular expressions by which the byte-pair encodings cut a text before they merge, as published with them
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_PATTERN = QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def resource(package: str, file: str) -> Path:
    """A file of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed: pip install '.[vocabularies]'")
    return Path(spec.submodule_search_locations[0]) / file


def byte_pairs(ranks: dict[bytes, int], pattern: str, special: dict[str, int], shift: int = 0) -> Tokenizer:
    """A tokenizer from tiktoken's ranks. special: {token: id}; shift: ids of ordinary tokens are rank + shift."""
    letters = bytes_to_unicode()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank + shift for token, rank in ranks.items()} | special
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        cuts.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [(spelled[a], spelled[b]) for a, b in cuts]
    out = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    out.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    out.decoder = decoders.ByteLevel()
    out.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return out


def tiktoken_ranks(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {b64decode(token): int(rank) for token, rank in lines}


@cache
def qwen() -> PreTrainedTokenizerFast:
    ranks = tiktoken_ranks(resource("dashscope", "resources/qwen.tiktoken"))
    names = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end"
    names = [f"<|{name}|>" for name in f"{names} vision_start vision_end vision_pad image_pad video_pad".split()]
    names += ["<image>", "<video>", "<IMG_CONTEXT>", "<img>", "</img>"]  # LLaVA-OneVision's and InternVL's
    core = byte_pairs(ranks, QWEN_PATTERN, {name: len(ranks) + i for i, name in enumerate(names)})
    core.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@cache
def pixtral() -> PreTrainedTokenizerFast:
    tekken = json.loads(resource("mistral_common", "data/tekken_240911.json").read_text(encoding="utf-8"))
    names = "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
    names = f"{names} [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END]".split()
    reserved, size = tekken["config"]["default_num_special_tokens"], tekken["config"]["default_vocab_size"]
    ranks = {b64decode(entry["token_bytes"]): entry["rank"] for entry in tekken["vocab"][: size - reserved]}
    special = {name: i for i, name in enumerate(names)}
    special |= {f"<SPECIAL_{i}>": i for i in range(len(names), reserved)}
    core = byte_pairs(ranks, tekken["config"]["pattern"], special, shift=reserved)
    named = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


@cache
def llama() -> PreTrainedTokenizerFast:
    ranks = tiktoken_ranks(resource("llama_models", "llama3/tokenizer.model"))
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
    names += ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]  # Idefics3's
    core = byte_pairs(ranks, LLAMA_PATTERN, {name: len(ranks) + i for i, name in enumerate(names)})
    named = dict(bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


# chat templates: the text they write for a system text and one user turn ------------------------------------


def chatml(picture: str, before_text: str = "", after_role: str = "\\n", after_turn: str = "\\n") -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m.role + '" + after_role + "' }}"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ '" + picture + "' if part.type == 'image' else '" + before_text + "' + part.text }}"
        "{% endfor %}{% endif %}{{ '<|im_end|>" + after_turn + "' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
    )


PIXTRAL_CHAT = (  # the system text stands inside the last user turn
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}<s>"
    "{% for m in messages if m.role == 'user' %}{{ '[INST]' + (system + '\\n\\n' if system else '') }}"
    "{% for part in m.content %}{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}[/INST]{% endfor %}"
)
IDEFICS_CHAT = (
    "<|begin_of_text|>{% for m in messages %}{{ m.role.capitalize() }}"
    "{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<end_of_utterance>\\n' }}{% endfor %}{{ 'Assistant:' }}"
)
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Published:
    """A family with the vocabulary of its published checkpoints and their chat text."""

    vocabulary: Callable[[], PreTrainedTokenizerFast]
    chat: str
    image: str
    chat_text: str  # what precedes and follows one picture and the question Q, with system text S

    def ids(self, tokenizer, side: int, row_break: str = "", last_break: str = "") -> list[int]:
        """Token ids of the whole prompt, from the chat text written out by hand."""
        rows = (self.image * side + row_break) * (side - 1) + self.image * side + last_break
        return tokenizer(self.chat_text.replace("<PICTURE>", rows), add_special_tokens=False)["input_ids"]


CHATML = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{}Q<|im_end|>\n<|im_start|>assistant\n"
FOUND = {
    "qwen2-vl": Published(
        qwen, chatml(QWEN_PICTURE), "<|image_pad|>", CHATML.format("<|vision_start|><PICTURE><|vision_end|>")
    ),
    "pixtral": Published(pixtral, PIXTRAL_CHAT, "[IMG]", "<s>[INST]S\n\n<PICTURE>Q[/INST]"),
    "idefics3": Published(
        llama,
        IDEFICS_CHAT,
        "<image>",
        "<|begin_of_text|>System: S<end_of_utterance>\nUser:<fake_token_around_image><global-img><PICTURE>"
        "<fake_token_around_image>Q<end_of_utterance>\nAssistant:",
    ),
    "internvl3": Published(qwen, chatml("<IMG_CONTEXT>\\n"), "<IMG_CONTEXT>", CHATML.format("<img><PICTURE></img>\n")),
    "llava-onevision": Published(
        qwen,
        chatml("<image>", before_text="\\n", after_role=" ", after_turn=""),
        "<image>",
        "<|im_start|>system \nS<|im_end|><|im_start|>user <PICTURE><image>\nQ<|im_end|><|im_start|>assistant\n",
    ),
}
FOUND["qwen2.5-vl"] = FOUND["qwen2-vl"]


@cache
def published(name: str) -> VLM:
    """A family at its published grid and vocabulary; weights and encoder are tiny and play no part here."""
    found = FOUND[name]
    words = found.vocabulary()
    image = words.convert_tokens_to_ids(found.image)
    model = tiny._model(name, len(words), image, "sdpa")
    record = family(name)
    return VLM(model, words, tiny._processor(name), record, record.grid, name, found.chat)


everywhere = pytest.mark.parametrize("name", FOUND)


def every_question(grid):
    """Every question form of the project, once per direction and reference."""
    for setting in SETTINGS:
        for direction in DIRECTIONS:
            for reference in entities(setting, grid):
                yield neighbour_question(setting, direction, reference)
    for direction in ("left", "right"):
        yield whatsup_question(direction, "armchair")
    for form in ("reference_point", "is_the"):
        for options in (("left", "right"), ("right", "left"), ("above", "below"), ("below", "above")):
            yield side_question("cup", "table", options, form)


@pytest.mark.parametrize("setting", [*SETTINGS, "sides", "whatsup"])
@everywhere
def test_every_candidate_keeps_a_spelling(name, setting):
    vlm = published(name)
    if setting in SETTINGS:
        words = {entity.name for entity in entities(setting, vlm.grid)}
    else:
        words = {"sides": DIRECTIONS, "whatsup": WHATSUP}[setting]
    for word in sorted(words):
        ids = vlm.candidates([word])[0, 0].tolist()
        written = [vlm.tokenizer.decode([i]) for i in ids if i >= 0]
        assert written and {text.strip().lower() for text in written} == {word}
        dropped = vlm.prompts.dropped.get(word, ())
        assert set(written) | set(dropped) == {form for w in (word, word.capitalize()) for form in (w, " " + w)}
        for form in dropped:
            assert len(vlm.tokenizer(form, add_special_tokens=False)["input_ids"]) > 1


def test_words_of_which_spellings_are_dropped():
    """What the earlier rule (all four spellings are one token) stopped at."""
    vlm = published("pixtral")
    vlm.candidates(["bomb", "red"])
    assert vlm.prompts.dropped["bomb"] == ("bomb",) and "red" not in vlm.prompts.dropped
    vlm = published("qwen2-vl")
    vlm.candidates(["mug", "left"])
    assert "mug" in vlm.prompts.dropped and "left" not in vlm.prompts.dropped


@everywhere
def test_a_word_of_several_tokens_is_refused_by_name(name):
    """What'sUp's third reference is two tokens in every one of these vocabularies."""
    with pytest.raises(UserError, match=f"'armchair' is not one token for {name} in any spelling.*'arm', 'chair'"):
        published(name).candidates(["chair", "armchair"])


@everywhere
def test_prompts_are_those_of_the_published_chat(name):
    vlm, found = published(name), FOUND[name]
    record = vlm.family
    prompt = vlm.tokens(["Q"], system="S")
    expected = found.ids(vlm.tokenizer, vlm.grid.side, record.row_break, record.last_break)
    assert prompt.ids[0].tolist() == expected
    assert vlm.tokenizer.decode(expected, skip_special_tokens=False).count(found.image) == (
        vlm.grid.side**2 + record.tokens_after_grid
    )


@everywhere
def test_every_question_form(name):
    """No question touches the image tokens, and all share the tokens up to the question."""
    vlm = published(name)
    questions = list(dict.fromkeys(every_question(vlm.grid)))
    prompt = vlm.tokens(questions, SYSTEM_TEXT)
    start = int(prompt.image[0, -1]) + 1 - (prompt.length - int(prompt.mask[0].sum()))
    prefixes = set()
    for row, question in enumerate(questions):
        ids = prompt.ids[row][prompt.mask[row]].tolist()
        prefixes.add(tuple(ids[:start]))
        assert question in vlm.tokenizer.decode(ids[start:])
        assert (prompt.ids[row, prompt.image[row]] == vlm.language.image_id).all()
    assert len(prefixes) == 1
    assert SYSTEM_TEXT in vlm.tokenizer.decode(prefixes.pop())


@pytest.mark.parametrize(
    "build, text, known",
    [
        (qwen, "Hello world", [9707, 1879]),
        (llama, "Hello world", [9906, 1917]),
    ],
)
def test_vocabularies_give_the_known_ids(build, text, known):
    """The ids that are widely quoted for these vocabularies: ours are read right."""
    assert build()(text, add_special_tokens=False)["input_ids"] == known


# Pixtral's own software ------------------------------------------------------------------------------------


@cache
def official():
    resource("mistral_common", "data")
    module = pytest.importorskip("mistral_common.tokens.tokenizers.mistral", exc_type=ImportError)
    return module.MistralTokenizer.from_file(str(resource("mistral_common", "data/tekken_240911.json")))


def test_our_tokenizer_is_the_official_one():
    ours, theirs = pixtral(), official().instruct_tokenizer.tokenizer
    for question in every_question(GRIDS["pixtral"]):
        assert ours(question, add_special_tokens=False)["input_ids"] == theirs.encode(question, bos=False, eos=False)
    for word in (*OBJECT_NAMES, *WHATSUP, *DIRECTIONS):
        for form in (word, word.capitalize(), " " + word, " " + word.capitalize()):
            assert ours(form, add_special_tokens=False)["input_ids"] == theirs.encode(form, bos=False, eos=False)


def test_pictures_become_the_official_tokens_and_pixels():
    pytest.importorskip("cv2", reason="the official encoder resizes with OpenCV: pip install '.[vocabularies]'")
    from mistral_common.protocol.instruct.chunk import ImageChunk

    vlm = published("pixtral")
    side = vlm.grid.canvas
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    encoded = official().instruct_tokenizer.mm_encoder(ImageChunk(image=picture))
    ids = vlm.tokens(["Q"], system="S").ids[0].tolist()
    start = ids.index(vlm.language.image_id)
    assert ids[start : start + len(encoded.tokens)] == encoded.tokens
    assert ids[start + len(encoded.tokens)] not in encoded.tokens

    import transformers

    processor = transformers.PixtralImageProcessorPil(  # as preprocessor_config.json of the published checkpoint
        patch_size={"height": 16, "width": 16},
        size={"longest_edge": 1024},
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    )
    pixels = processor(images=[picture], return_tensors="pt", **vlm.family.options)["pixel_values"][0]
    assert np.abs(pixels.numpy() - encoded.image).max() < 1e-5


def test_the_whole_prompt_is_the_official_one():
    """A prompt with the paper's system text, tokenised by mistral-common and by us."""
    pytest.importorskip("cv2", reason="the official encoder resizes with OpenCV: pip install '.[vocabularies]'")
    from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk
    from mistral_common.protocol.instruct.messages import SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    vlm = published("pixtral")
    question = "The color of the square to the left of the red square is"
    picture = Image.new("RGB", (vlm.grid.canvas,) * 2, "white")
    user = UserMessage(content=[ImageChunk(image=picture), TextChunk(text=question)])
    request = ChatCompletionRequest(messages=[SystemMessage(content=SYSTEM_TEXT), user])
    theirs = official().encode_chat_completion(request).tokens
    ours = vlm.tokens([question], SYSTEM_TEXT).ids[0].tolist()
    assert theirs.count(vlm.language.image_id) == ours.count(vlm.language.image_id) == vlm.grid.side**2
    assert theirs == ours
