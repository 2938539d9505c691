"""The sentences and tables of the README that hold numbers, made from the published record; `readme` puts them there."""

import json
from collections import Counter

import pandas as pd

from lib.analysis.fingerprint import RIVALS
from lib.analysis.ladder import STEPS
from lib.artifact import markdown, record
from lib.artifact.figures import AXES
from lib.artifact.record import two_digits
from lib.artifact.site.matrix import LETTERS
from lib.engine.checkpoints import seeds
from lib.engine.embedded import DEFAULT
from lib.places import MODELS

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


def rivals(values: str = "value") -> pd.DataFrame:
    """The four rivals of all embedded models at slot 0, a row per model and axis; values: "value", or a bound of its
    interval ("low", "high")."""
    table = record.table(DEFAULT, "figures/02-models.csv")
    return table.pivot_table(index=["model", "orientation"], columns="rival", values=values, sort=False)


def after_ablation() -> pd.DataFrame:
    return record.table(DEFAULT, "figures/02-ablation.csv").set_index(["model", "orientation"])


def findings() -> str:
    """What was found, a sentence per result, numbers from the tables."""
    table, left = rivals(), after_ablation()
    parts = [paper(), seed_by_seed(table), positive_control(table, left), by_axis(table, left)]
    return "\n".join(parts) + "\n"


def more() -> str:
    """What else was found, for docs/RESULTS.md."""
    return "\n".join([positions(), strips_unused()]) + "\n"


def paper() -> str:
    """The paper's observation and the edits that tell its explanation from its rivals."""
    edit = effects()
    return (
        f"- **The paper's observation comes out, its explanation, read strictly, does not.** In `{DEFAULT}`, made in stages as published models are, interchanging strips moves the answer {both(edit[2])} of the way to the mirror picture's (left-right and above-below), objects alone {both(edit[1])}. "
        f"Yet exchanging the strips' background *within* the picture, which a code of place on the background must follow, moves it {both(edit[9].abs())}; all background from the mirror picture, in place, {both(edit[5])}: the background says *who stands where*. That the order is in the background at all, the loose reading of the paper, it confirms for this model. This excludes a code of place alone on each strip, not one that is bound to the object on it. It says who wins when the two disagree: with the background emptied, the objects alone still suffice (notebook 02, ladder)."
    )


def seed_by_seed(table: pd.DataFrame) -> str:
    """Where the trainings of one recipe keep order, beside what can be read from an object's own tokens; table:
    `rivals`."""
    names = list(seeds(DEFAULT).values())
    scene = [name for name in names if table.loc[name, "B"].min() > 0.5]
    objects = [name for name in names if table.loc[name, "O"].min() > 0.5]
    kept = {name: place_readable(name) for name in (*names, "qwen_style", "pixtral_style")}
    low, high = ([kept[name] for name in kept if (name in scene) == where] for where in (True, False))
    return (
        f"- **The same recipe can keep order in different places.** Of {len(names)} trainings of `{DEFAULT}`, equal but for the random start and the order of lessons, {len(scene)} keep it in the background (B {span(table.loc[scene, 'B'])}) and {len(objects)} on the objects (O {span(table.loc[objects, 'O'])}, B at most {two_digits(table.loc[objects, 'B'].abs().max())}): one training says nothing about a recipe. "
        f"After the fact, this goes with how well row and column can be read from an object's own tokens once its encoder is trained: R2 {two_digits(min(low))} to {two_digits(max(low))} where the background decides, {two_digits(min(high))} or more in `{objects[0]}`, `qwen_style` and `pixtral_style`. Five models cannot show that it is the cause."
    )


def span(values: pd.DataFrame | pd.Series) -> str:
    return f"{two_digits(values.min())} to {two_digits(values.max())}"


def place_readable(name: str) -> float:
    """The lower R2 of row and column of an object, read from its tokens at the end of the encoder's training."""
    entries = [json.loads(line) for line in (MODELS / name / "training.jsonl").read_text("utf-8").splitlines()]
    last = [entry for entry in entries if entry["stage"] == "encoder" and "row" in entry][-1]
    return min(last["row"], last["column"])


def positive_control(table: pd.DataFrame, left: pd.DataFrame) -> str:
    """The planted strip code; table: `rivals`, left: `after_ablation`."""
    own, kept = table.loc["strip_code"], left.loc["strip_code", "accuracy"]
    return (
        f"- **The edit finds a strip code where there is one.** In `strip_code`, built to be the paper's picture read strictly, it moves the answer {both(own['S'])} of the way, every other source at most {two_digits(own[['O', 'B', 'P']].abs().max().max())}; in all other models at most {two_digits(table.drop('strip_code')['S'].abs().max())}. "
        f"And that model still answers {both(kept)} correctly after the paper's ordering ablation, because the empty canvas carries the code, too: a model that loses order there does not have it from a strip code of this kind alone."
    )


def by_axis(table: pd.DataFrame, left: pd.DataFrame) -> str:
    """Models in which the two axes rest on different sources; table: `rivals`, left: `after_ablation`."""
    together, apart = ("qwen_joint", "pixtral_joint"), ("qwen_style", "pixtral_style", "reference-seed2")
    places = min(table.loc[(name, "vertical"), "P"] for name in together)
    objects = min(table.loc[(name, "horizontal"), "O"] for name in (*together, *apart))
    above = "; ".join(
        f"`{name}` O {two_digits(table.loc[(name, 'vertical'), 'O'])}, P {two_digits(table.loc[(name, 'vertical'), 'P'])}, {two_digits(left.loc[(name, 'vertical'), 'accuracy'])} correct after the ablation"
        for name in apart
    )
    return f"- **It can differ by axis within one model.** Five models keep left-right on the objects (O {two_digits(objects)} or more). Above-below two of them, trained at once, make from token places (P {two_digits(places)} or more); in the three with a frozen encoder the objects are the largest single source where sources disagree, and something else still answers when they are silenced ({above}): a backup, clearest on one axis."


def strips_unused(model: str = "qwen_style") -> str:
    """A model in which strips are visible and not used."""
    seen = [row["value"] for row in record.rows(model) if row["metric"] == "strips_beyond_bare"]
    used = [abs(row["value"]) for row in record.rows(model) if row["metric"] == "strip_code"]
    return f"- **Strips that a probe sees need not be used.** In `{model}` a probe trained on objects sees strips over the background (C3: score {two_digits(min(seen))} to {two_digits(max(seen))} above an empty canvas), and exchanging them changes nothing (C4: at most {two_digits(max(used))})."


def positions() -> str:
    """What other positions of the image tokens do to the axis that survives the ablation, with the control that tells
    whether the route from token places still works under new numbers."""
    said = []
    for name in ("pixtral_style", "qwen_style"):
        table = record.table(name, "figures/02-positions.csv")
        table = table[(table["measure"] == "named") & (table["orientation"] == "vertical")]
        left = table[table["step"] == STEPS[-1]].set_index("scheme")
        own, dropped, control = (two_digits(left.loc[scheme, "value"]) for scheme in ("own", "columns", "rows"))
        holds = left.loc["rows", "low"] > 0.5
        what = "the loss is one of information" if holds else "the control falls, too, so that the loss may be damage"
        said.append(f"`{name}` {own}, {dropped}, control {control}: {what}")
    return (
        "- **Position numbers carry part of the axis that survives where the control holds.** The above-below order that the ablation leaves (1: all of it) under the backbone's own position numbers; with one number per column, "
        f"which tells rows apart no more; and, as a control, with one number per row, as new to the model but telling rows apart (16 pairs each): {'; '.join(said)}."
    )


def sources() -> str:
    """Where the order comes from, a line per model: the sources with an effect of .05 or more on each axis, and
    accuracy after the ablation."""
    table, lows, left, lines = rivals(), rivals("low"), after_ablation(), []
    for model in dict.fromkeys(table.index.get_level_values(0)):
        cells = []
        for axis in AXES:
            own = table.loc[(model, axis), list(RIVALS)].sort_values(ascending=False)
            shown = [f"{rival} {two_digits(value)}" for rival, value in own.items() if value >= 0.05]
            cells.append(", ".join(f"**{x}**" if lows.loc[(model, axis), x[0]] > 0.5 else x for x in shown) or "none")
        kept = [two_digits(left.loc[(model, axis), "accuracy"]) if (model, axis) in left.index else "" for axis in AXES]
        lines.append((f"`{model}`", *cells, ", ".join(kept)))
    return markdown.table(["model", "left-right", "above-below", "correct after the ablation"], lines)


def claims() -> str:
    """The claims in plain words with their rivals, and a letter per verdict for the models that ran more than notebook
    02, which measures C4 and C5."""
    rows = {name: own for name, own in record.compared().items() if {row["claim"] for row in own} - {"C4", "C5"}}
    lines = []
    for metric, (sentence, rival) in CLAIMS.items():
        cells = [said(own, metric, LETTERS) for own in rows.values()]
        if any(cells):
            lines.append((sentence, rival, *cells))
    return markdown.table(["claim", "rival it excludes", *markdown.code(rows)], lines)


def said(rows: list[dict], metric: str, words: dict[str, str] | None = None) -> str:
    """The verdicts on a metric in short, with counts where they differ; empty where nobody measured it.

    words: what stands for each verdict, default itself.
    """
    counts = Counter(row["verdict"] for row in rows if row["metric"] == metric)
    shown = [((words or {}).get(verdict, verdict), count) for verdict, count in counts.most_common()]
    return shown[0][0] if len(shown) == 1 else ", ".join(f"{word} {count}" for word, count in shown)
