"""The main figures of the index, each with the sentence that says how to read it (not what it shows: that differs)."""

from lib.artifact import record

CAPTIONS = {
    "02-edits": "Nine edits of a picture's image tokens: tinted tokens take vectors from the mirror picture (pink) or "
    "from elsewhere in the picture (orange).",
    "02-fingerprint": "The effect of each explanation's own edit in three kinds of pictures: 1, the answer follows "
    "this source of order; 0, it does not.",
    "02-models": "The same four effects for every embedded model, on left-right and on above-below.",
    "02-slots": "The same four edits made at deeper and deeper slots: where a curve falls to 0, the order has left the "
    "image tokens.",
    "02-dose": "How much background has to come from the mirror picture: random tokens or whole strips of as many.",
    "02-ladder": "Order that is left (solid) as the background, the neighbours and the place of each object are taken "
    "away in turn; dotted, answers that name neither object.",
    "02-ablation": "Correct answers after the paper's ordering ablation, published checkpoints (as counted by the "
    "paper's authors) beside the embedded models; hollow, most answers name neither object.",
    "02-positions": "What is left after the ablation when the position numbers of the language model are changed: "
    "if token places carry it, it follows the numbers.",
    "03-components": "Attention and MLP outputs, and every head, patched one at a time: which of them move the answer "
    "beyond pictures that have the same answer.",
    "03-last-token": "The last token is patched, slot by slot: the answer at the other ordinal place (order), then the "
    "other picture's own answer (attribute).",
    "03-text-codes": "Codes on the words of the question: the direction asked for and the place of the reference, from "
    "pictures and from an empty canvas.",
    "03-interchange-ablated": "Interchange of objects and of strips at every slot, with the order removed from the "
    "embeddings (top) and intact (bottom).",
    "04-maps": "Where a probe trained on object tokens reads first, middle and last in the background: strips would be "
    "bands through the objects.",
    "04-strip-score": "How strip-like those maps are, beside the maps of probes that cannot have learned an order.",
    "05-remedies": "Amplified order directions beside more or less attention to image tokens: answers repaired and "
    "broken.",
    "05-table2": "What amplifying the order directions repairs and breaks, beside random directions and the paper's "
    "values.",
}


def pictures(model: str) -> list[dict]:
    """The main figures that a model has, in the order of the story: id, caption, and where they are in the edition."""
    found = {picture.stem for picture in record.figures(model)}
    return [
        {"id": name, "caption": caption, "src": f"{model}/figures/{name}.png"}
        for name, caption in CAPTIONS.items()
        if name in found
    ]
