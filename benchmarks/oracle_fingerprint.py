"""Edits 1, 5, 8, 9 of the fingerprint at slot 0, by plain transformers alone: `python oracle_fingerprint.py FOLDER N`.

Nothing of this project's library is imported. The first N pairs of Squares, "left of", are written down below as the
library draws them; pictures are drawn with Pillow, image tokens are edited by hand and given to a full forward pass.
Prints a line per edit: its number and the mean change of P(opposite) - P(target).
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

SIDE, PIXELS = 12, 14
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "brown": (150, 75, 0),
    "gray": (128, 128, 128),
}
PAIRS = [
    ("green", "black", "red"),
    ("brown", "gray", "blue"),
    ("green", "red", "black"),
    ("green", "brown", "black"),
    ("blue", "brown", "black"),
    ("black", "green", "blue"),
]
PLACES = [1, 5, 9]  # first token column of the three squares
ACROSS = 5  # their first token row


def picture(colours):
    image = Image.new("RGB", (SIDE * PIXELS, SIDE * PIXELS), "white")
    draw = ImageDraw.Draw(image)
    for column, colour in zip(PLACES, colours, strict=True):
        x, y = column * PIXELS, ACROSS * PIXELS
        draw.rectangle((x, y, x + 2 * PIXELS - 1, y + 2 * PIXELS - 1), fill=COLOURS[colour])
    return image


def block(columns, rows=range(SIDE)):
    return [row * SIDE + column for row in rows for column in columns]


OBJECTS = [block(range(first, first + 2), range(ACROSS, ACROSS + 2)) for first in PLACES]
STRIPS = [block(range(4 * k, 4 * k + 4)) for k in range(3)]
REST = [[t for t in strip if t not in sum(OBJECTS, [])] for strip in STRIPS]
BACKGROUND = sorted(sum(REST, []))


def edited(a, b, number):
    out, first, last = a.clone(), 0, 2
    if number == 1:  # objects crossed with the mirror picture
        out[OBJECTS[first]], out[OBJECTS[last]] = b[OBJECTS[last]], b[OBJECTS[first]]
    elif number == 5:  # all background from the mirror picture
        out[BACKGROUND] = b[BACKGROUND]
    else:  # within A: strips' background (9), and the objects with it (8)
        pairs = [(REST[first], REST[last])] + ([(OBJECTS[first], OBJECTS[last])] if number == 8 else [])
        for one, two in pairs:
            out[one], out[two] = a[two], a[one]
    return out


def main():
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    moved = {1: [], 5: [], 8: [], 9: []}
    with torch.no_grad():
        for colours in PAIRS[:count]:
            target, reference, opposite = colours
            question = f"The color of the square to the left of the {reference} square is"
            content = [{"type": "image"}, {"type": "text", "text": question}]
            messages = [
                {"role": "system", "content": [{"type": "text", "text": "Answer with one word."}]},
                {"role": "user", "content": content},
            ]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            tokens, inputs = [], None
            for order in (colours, colours[::-1]):
                inputs = processor(images=picture(order), text=text, return_tensors="pt")
                tokens.append(model.model.get_image_features(inputs["pixel_values"]).pooler_output[0])
            embedded = model.get_input_embeddings()(inputs["input_ids"])
            places = (inputs["input_ids"][0] == model.config.image_token_index).nonzero()[:, 0]
            ids = [processor.tokenizer(word).input_ids[0] for word in (target, opposite)]

            def swing(image, embedded=embedded, places=places, ids=ids):
                filled = embedded.clone()
                filled[0, places] = image
                probability = model(inputs_embeds=filled).logits[0, -1].softmax(-1)
                return float(probability[ids[1]] - probability[ids[0]])

            start = swing(tokens[0])
            for number, found in moved.items():
                found.append(swing(edited(*tokens, number)) - start)
    for number, found in moved.items():
        print(number, sum(found) / len(found))


if __name__ == "__main__":
    main()
