"""The embedded models: what each is for, what the default run does with it, how it is drawn. Pure data; the one list.

Their weights are in data/models/<name>, further training seeds beside them as <name>-seed<k>.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Embedded:
    """One embedded model.

    purpose: "default"; "staged", made in stages like it (encoder trained first, then frozen) with another position
    scheme; "joint", everything trained at once; "planted", built so that it is known where order comes from. notebooks:
    the numbers of those that the default run gives it, None for all. colour, line and marker: its look in every figure,
    in matplotlib's terms; models of one architecture share a colour, those of one purpose a line.
    """

    name: str
    purpose: Literal["default", "staged", "joint", "planted"]
    notebooks: tuple[str, ...] | None
    colour: str
    line: str
    marker: str


BLACK, BLUE, GREEN, VERMILLION = "#000000", "#0072B2", "#009E73", "#D55E00"
ORANGE, PURPLE, SKY, GREY = "#E69F00", "#CC79A7", "#56B4E9", "#777777"
MECHANISM = ("02", "03", "04")  # notebooks that ask where order comes from
MODELS = (
    Embedded("reference", "default", None, BLACK, "-", "o"),
    Embedded("qwen_style", "staged", MECHANISM, BLUE, "-", "^"),
    Embedded("gemma_style", "staged", MECHANISM, GREEN, "-", "v"),
    Embedded("pixtral_style", "staged", MECHANISM, VERMILLION, "-", "D"),
    Embedded("joint", "joint", MECHANISM, BLACK, "--", "s"),
    Embedded("qwen_joint", "joint", ("02",), BLUE, "--", "<"),
    Embedded("gemma_joint", "joint", ("02",), GREEN, "--", ">"),
    Embedded("pixtral_joint", "joint", ("02",), VERMILLION, "--", "d"),
    Embedded("vision_only", "planted", (), SKY, "-.", "P"),
    Embedded("backbone_only", "planted", (), ORANGE, "-.", "X"),
    Embedded("split", "planted", (), PURPLE, "-.", "*"),
    Embedded("redundant", "planted", (), GREY, "-.", "h"),
    Embedded("strip_code", "planted", (), GREY, ":", "p"),
)

NAMES = tuple(model.name for model in MODELS)
DEFAULT = next(model.name for model in MODELS if model.purpose == "default")
PLANTED = tuple(model.name for model in MODELS if model.purpose == "planted")
COMPARED = tuple(model.name for model in MODELS if model.purpose != "planted")  # claims side by side


def recipe(name: str) -> str | None:
    """The embedded model that a model is, or is another training seed of; None for models from elsewhere."""
    found = name.split("-seed")[0]
    return found if found in NAMES else None


def rank(name: str) -> tuple[int, str]:
    """Sorts models: the embedded ones in the order of the list, their seeds behind each, then all others by name."""
    found = recipe(name)
    return (NAMES.index(found) if found else len(NAMES), name)
