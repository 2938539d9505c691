"""The sentences and tables of the README that hold numbers, made from the published record; `readme` puts them there."""

from collections import Counter

import pandas as pd

from lib.analysis.fingerprint import RIVALS
from lib.artifact import record
from lib.artifact.figures import AXES
from lib.artifact.record import two_digits
from lib.artifact.site.matrix import LETTERS
from lib.engine.checkpoints import seeds
from lib.engine.embedded import COMPARED, DEFAULT

# The claims as the README says them: metric -> claim in plain words, and the rival that the metric excludes.
CLAIMS = {
    "order_beyond_words": (
        "C1 The last token first points to a place, then takes what stands there",
        "the words of the question, asked about an empty canvas",
    ),
    "probe_seen_entities": (
        "C2 Order can be read linearly from object tokens: known entities",
        "embeddings without a readable place",
    ),
    "probe_unseen_entities": ("C2 The same, entities the probe never saw", "a table of known entities"),
    "probe_unseen_places": ("C2 The same, lines that stand elsewhere", "place on the canvas"),
    "strips_beyond_bare": ("C3 Order forms strips over the background", "place on the canvas, objects or not"),
    "strip_code": ("C4 The strips decide the answer", "objects' own code, scene code, token places"),
    "order_lost_named": ("C5 The encoder's order dominates: lost under the paper's ablation", "damage"),
    "order_lost_own_place": ("C5 Lost already with objects alone at their place", "a code of each object's own place"),
    "backup_beyond_floor": ("C6 The backbone keeps a backup on object tokens", "pairs right by luck"),
    "repaired_beyond_random": ("C7 Turning up order directions repairs failures", "any push of that size"),
    "net_gain": ("C7 More than it breaks", "repairs paid for elsewhere"),
}


def effects(model: str = DEFAULT) -> pd.Series:
    """Effects at slot 0 on centred lines of squares, by edit and axis."""
    table = record.table(model, "tables/fingerprint.csv")
    table = table[(table["setting"] == "squares") & table["centred"] & (table["slot"] == 0)]
    return table.set_index(["edit", "orientation"])["effect"]


def both(values: pd.Series) -> str:
    """The values of both axes, left-right first."""
    return " and ".join(two_digits(values[axis]) for axis in AXES)


def rivals() -> pd.DataFrame:
    """The four rivals of all embedded models at slot 0, a row per model and axis."""
    table = record.table(DEFAULT, "figures/02-models.csv")
    return table.pivot_table(index=["model", "orientation"], columns="rival", values="value", sort=False)


def after_ablation() -> pd.DataFrame:
    return record.table(DEFAULT, "figures/02-ablation.csv").set_index(["model", "orientation"])


def findings() -> str:
    """What was found, a sentence per result, numbers from the tables."""
    edit, table, left = effects(), rivals(), after_ablation()
    trainings = [name for name in seeds(DEFAULT).values()]
    scene = table.loc[trainings, "B"]
    strips = table.drop("strip_code", errors="ignore")["S"].abs().max()
    parts = [
        f"- **The paper's observation is reproduced, its explanation is not.** In `{DEFAULT}`, made in stages as published models are, interchanging strips moves the answer {both(edit[2])} of the way to the mirror picture's (left-right and above-below), objects alone {both(edit[1])}. "
        f"Yet exchanging the strips' background *within* the picture, which a code of place on the background must follow, moves it {both(edit[9].abs())}, and all background from the mirror picture, in place, {both(edit[5])}: the background holds *who stands where*, at no particular place. "
        f"{len(trainings)} trainings agree (scene code {two_digits(scene.min())} to {two_digits(scene.max())}).",
    ]
    if "strip_code" in table.index.get_level_values(0):
        own, kept = table.loc["strip_code"], left.loc["strip_code", "accuracy"]
        parts.append(
            f"- **The edit finds a strip code where there is one.** In `strip_code`, built to be the paper's picture, it moves the answer {both(own['S'])} of the way, every other source at most {two_digits(own[['O', 'B', 'P']].abs().max().max())}; in all other models at most {two_digits(strips)}. "
            f"And that model still answers {both(kept)} correctly after the paper's ordering ablation, because the empty canvas carries the code, too: a model that loses order there does not have it from strips alone."
        )
    rotary, staged = ("qwen_style", "pixtral_style", "qwen_joint", "pixtral_joint"), ("qwen_style", "pixtral_style")
    objects = min(table.loc[(name, "horizontal"), "O"] for name in rotary)
    places = min(table.loc[(name, "vertical"), "P"] for name in rotary if name not in staged)
    shared = "; ".join(
        f"`{name}`: O {two_digits(table.loc[(name, 'vertical'), 'O'])}, P {two_digits(table.loc[(name, 'vertical'), 'P'])}"
        for name in staged
    )
    kept = " and ".join(two_digits(left.loc[(name, "vertical"), "accuracy"]) for name in staged)
    parts.append(
        f"- **Where order is kept depends on the encoder's position scheme, and can differ by axis within one model.** Encoders with learned positions write the scene into the background on both axes. Encoders with rotary positions keep left-right on the objects (O {two_digits(objects)} or more). "
        f"Above-below is made from token places where everything was trained at once (P {two_digits(places)} or more). Where the encoder was trained first, no source alone turns most answers ({shared}), and above-below survives the ablation ({kept} correct): a dual mechanism, on one axis."
    )
    parts += [positions(), strips_unused()]
    return "\n".join(parts) + "\n"


def strips_unused(model: str = "qwen_style") -> str:
    """A model in which strips are visible and not used."""
    seen = [row["value"] for row in record.rows(model) if row["metric"] == "strips_beyond_bare"]
    used = [abs(row["value"]) for row in record.rows(model) if row["metric"] == "strip_code"]
    return f"- **Strips that a probe sees need not be used.** In `{model}` a probe trained on objects sees strips over the background (C3: score {two_digits(min(seen))} to {two_digits(max(seen))} above an empty canvas), and exchanging them changes nothing (C4: at most {two_digits(max(used))})."


def positions() -> str:
    """What other positions of the image tokens do to the axis that survives the ablation."""
    said = []
    for name in ("pixtral_style", "qwen_style"):
        table = record.table(name, "figures/02-positions.csv")
        table = table[(table["measure"] == "named") & (table["orientation"] == "vertical")]
        value = table.set_index(["scheme", "step"])["value"].map(two_digits)
        said.append(
            f"from {value['own', 'middle']} to {value['close', 'middle']} in `{name}` (intact picture {value['close', 'intact']})"
        )
    return (
        "- **The axis that survives can hang on position numbers.** With rows as close to one another as columns in the backbone's position numbers, the above-below order that the ablation leaves "
        f"(1: all of it) goes {' and '.join(said)}."
    )


def sources() -> str:
    """Where the order comes from, a line per model: the sources with an effect of .05 or more on each axis, and
    accuracy after the ablation."""
    table, left = rivals(), after_ablation()
    lines = ["| model | left-right | above-below | correct after the ablation |", "|---|---|---|---|"]
    for model in dict.fromkeys(table.index.get_level_values(0)):
        cells = []
        for axis in AXES:
            own = table.loc[(model, axis), list(RIVALS)].sort_values(ascending=False)
            shown = [f"{rival} {two_digits(value)}" for rival, value in own.items() if value >= 0.05]
            cells.append(", ".join(f"**{x}**" if own[x[0]] > 0.5 else x for x in shown) or "none")
        kept = [two_digits(left.loc[(model, axis), "accuracy"]) if (model, axis) in left.index else "" for axis in AXES]
        lines.append(f"| `{model}` | {' | '.join(cells)} | {', '.join(kept)} |")
    return "\n".join(lines) + "\n"


def claims() -> str:
    """The claims in plain words with their rivals, and a letter per model and verdict."""
    rows = {name: record.rows(name) for name in COMPARED if name in record.models()}
    rows = {
        name: own for name, own in rows.items() if any(row["claim"] != "C4" and row["claim"] != "C5" for row in own)
    }
    lines = [
        f"| claim | rival it excludes | {' | '.join(f'`{name}`' for name in rows)} |",
        "|---|---|" + "---|" * len(rows),
    ]
    for metric, (sentence, rival) in CLAIMS.items():
        cells = [letters([row["verdict"] for row in own if row["metric"] == metric]) for own in rows.values()]
        if any(cells):
            lines.append(f"| {sentence} | {rival} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def letters(found: list[str]) -> str:
    """Verdicts of several rows as letters, with counts where they differ."""
    counts = Counter(found)
    if len(counts) == 1:
        return LETTERS[found[0]]
    return ", ".join(f"{LETTERS[verdict]} {count}" for verdict, count in counts.most_common())
