"""The embedded models: what each is for, what the default run does with it, how it is drawn. Pure data; the one list.

Their weights are in data/models/<name>, further training seeds beside them as <name>-seed<k>.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Embedded:
    """One embedded model.

    purpose: the default, a contrast that is reported beside it, or a calibration model, built so that the answer to
    "where does order come from" is known. notebooks: the numbers of those that the default run
    gives it, None for all. colour, line and marker: its look in every figure, in matplotlib's terms.
    """

    name: str
    purpose: Literal["default", "contrast", "calibration"]
    notebooks: tuple[str, ...] | None
    colour: str
    line: str | tuple = "-"
    marker: str = "o"
    seeds_compared: bool = False  # are the claims collected over several training seeds?


LONG_DASHES = (0, (6, 1.5))
MODELS = (
    Embedded("reference", "default", None, "#000000", "-", "o", seeds_compared=True),
    Embedded("joint", "contrast", ("02", "03", "04"), "#CC79A7", "--", "s", seeds_compared=True),
    Embedded("vision_only", "calibration", (), "#0072B2", "-.", "^"),
    Embedded("backbone_only", "calibration", (), "#E69F00", LONG_DASHES, "D"),
    Embedded("joint_random", "contrast", ("02", "03", "04"), "#009E73", LONG_DASHES, "v"),
)

NAMES = tuple(model.name for model in MODELS)
DEFAULT = next(model.name for model in MODELS if model.purpose == "default")
COMPARED = tuple(model.name for model in MODELS if model.purpose != "calibration")  # claims side by side
OVER_SEEDS = tuple(model.name for model in MODELS if model.seeds_compared)
PLAN = {model.name: model.notebooks for model in MODELS if model.notebooks != ()}  # the default run


def rank(name: str) -> tuple[int, str]:
    """Sorts models: the embedded ones in the order of the list, their seeds behind each, then all others by name."""
    recipe = name.split("-seed")[0]
    return (NAMES.index(recipe) if recipe in NAMES else len(NAMES), name)
