"""Every figure's caption: a sentence that says how to read it (not what it shows: that differs from model to model)."""

from lib.artifact import record

CAPTIONS = {  # the main figures, in the order in which the index shows them
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

APPENDIX = {  # shown on the pages of the models only
    "01-battery": "The competence battery: share of correct answers by layout and direction.",
    "01-behaviour": "Share of correct answers by kind of picture and direction; open marks, the paper's.",
    "01-errors": "Naturalistic pictures that were answered wrongly in at least one order of the two options.",
    "01-gallery": "One picture of each kind that the notebooks use.",
    "01-pairs": "The pictures that are compared: last-token pair, mirrored pair, and those of the ordering ablation.",
    "01-token-sets": "Sets of image tokens that the edits read and write: objects, a strip, its background, at random.",
    "02-ladder-steps": "The steps of the ladder on one picture: where each image token gets its vector from.",
    "02-encoder": "The four edits made inside the vision encoder, layer by layer: where the background or the objects "
    "come to hold the order.",
    "03-components-schematic": "How components are patched: the last token, or the reference's word, of the other run.",
    "03-components-attention": "Where the strongest heads look from the last token, in both pictures of a pair; the "
    "outlined object is at the place that the question asks for.",
    "03-components-checks": "The strongest heads patched together, and cut off from the picture, beside as many random "
    "other heads.",
    "03-interchange-schematic": "How the objects' tokens of the mirror picture go to the other side of the clean one.",
    "03-knockout": "The last token is cut off from a set of image tokens, in one layer (top) or from a layer on "
    "(bottom): how much probability the correct answer loses.",
    "03-knockout-schematic": "How the last token is cut off from a set of image tokens in one layer.",
    "03-last-token-schematic": "How the last token is patched: the other run's vector, at one slot after another.",
    "03-probes-embeddings": "Accuracy of probes for the place in the line, by the paper's recipe and at the optimum, "
    "with what the probe can learn without order.",
    "03-probes-slots": "The same probes at every slot, with order intact and removed from the embeddings.",
    "03-same-question": "Last-token patching where both runs ask the same question about different places.",
    "03-text-codes-schematic": "How a word of the question is patched: the reference's word of the other run.",
    "04-dose": "Objects interchanged together with more and more background tokens: of the strips, or at random.",
    "04-dose-schematic": "The tokens of the clean picture that take vectors of the mirror picture, with eight of the "
    "background.",
    "04-maps-elsewhere": "The probe's maps on photographs, on grids and on pictures without objects: bands there are "
    "place on the canvas, not order.",
    "04-necessity": "Order is removed from some image tokens only: what the answer loses.",
    "04-necessity-schematic": "The tokens from which order is removed, part by part.",
    "04-places": "The lines that stand elsewhere, in which place in the line and place on the canvas disagree.",
    "04-profiles": "The probe's maps as curves along the axis, background tokens only.",
    "04-readings": "Tokens whose place in the line and place on the canvas disagree: which of the two the probe reads.",
    "04-shifted-lines": "Probes on lines that stand elsewhere, beside the model's own answers to the same pictures.",
    "04-strip-score-photographs": "The strip scores again, on photographs.",
    "04-sufficiency": "Parts of the mirror picture put into the clean one, objects against background.",
    "05-ablations": "What other choices of directions, tokens and slots repair and break, beside random directions.",
    "05-amplified-schematic": "Amplification of all image tokens of a picture, and of the vectors of two objects.",
    "05-attention-schematic": "The attention from the last token to the image tokens, which is scaled in all layers.",
    "05-dose": "Repaired, broken and strict accuracy by amplification alpha; grey bars, random directions.",
    "05-gallery": "Items repaired and broken, with the probability of the correct answer before and after.",
    "06-split": "Training of split: when it answers, and which source decides, by lessons seen.",
    "06-redundant": "Training of redundant: when it answers, and which source decides, by lessons seen.",
    "06-gemma_style": "Training of gemma_style: when it answers, and which source decides, by lessons seen.",
}


def caption(figure: str) -> str:
    """The caption of a figure by its id; empty for a figure of somebody's own."""
    return CAPTIONS.get(figure) or APPENDIX.get(figure, "")


def pictures(model: str) -> list[dict]:
    """The main figures that a model has, in the order of the story: id, caption, and where they are in the edition."""
    found = {picture.stem for picture in record.figures(model)}
    return [
        {"id": name, "caption": caption, "src": f"{model}/figures/{name}.png"}
        for name, caption in CAPTIONS.items()
        if name in found
    ]
