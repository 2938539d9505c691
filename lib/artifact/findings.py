"""The sentences and tables of the README that hold numbers, made from the published record; `readme` puts them there."""

import json
from collections import Counter

import pandas as pd

from lib import places
from lib.analysis import position_schemes, published_counts
from lib.analysis.fingerprint import RIVALS
from lib.analysis.ladder import STEPS
from lib.analysis.statistics import decimals
from lib.artifact import ledger, markdown, record
from lib.artifact.figures import AXES
from lib.artifact.site.matrix import LETTERS
from lib.engine.checkpoints import seeds
from lib.engine.embedded import DEFAULT, MODELS, PLANTED

# The claims as the README says them: metric -> claim in plain words, and the rival that the metric tests.
CLAIMS = {
    "order_beyond_words": (
        "C1 The last token first points to a place, then takes what stands there",
        "the question's words alone (empty canvas)",
    ),
    "probe_seen_entities": (
        "C2 Order can be read linearly from object tokens: known entities",
        "embeddings without a readable place",
    ),
    "probe_unseen_entities": ("C2 The same, entities the probe never saw", "a table of known entities"),
    "probe_unseen_places": ("C2 The same, line moved on the canvas", "place on the canvas"),
    "strips_beyond_bare": ("C3 Order forms strips over the background", "place on the canvas, objects or not"),
    "strip_code": ("C4 A code of place on the strips decides the answer", "O, B and P: they predict 0 (edit 9)"),
    "order_lost_named": (
        "C5 Answers are lost under the paper's ablation",
        "tokens so odd that it names neither object",
    ),
    "order_lost_own_place": (
        "C5 Lost already when each object is taken alone at its own place",
        "a code of each object's own place",
    ),
    "backup_beyond_floor": ("C6 The backbone keeps a backup on object tokens", "pairs that are right by chance"),
    "repaired_beyond_random": ("C7 Turning up order directions repairs failures", "any push of that size"),
    "net_gain": ("C7 It repairs more than it breaks", "repairs paid for elsewhere"),
}

# The four rivals as the README says them: what could tell which object is where, and the edit that tests it alone.
SOURCES = {
    "O": ("the tokens of the objects themselves", 1),
    "S": ("the background around an object, naming only *its strip* (a strict reading of the paper)", 9),
    "B": ("the background, by saying *which object is where*", 5),
    "P": ("the places of the tokens in the sequence", 8),
}
SHOWN = ("reference", "reference-seed2", "qwen_style", "joint", "strip_code")

# Where an edit leaves less than this probability on the two candidates, a dagger stands at its effect.
MOSTLY, DAGGER = 0.9, "\N{DAGGER}"


def fingerprint(model: str = DEFAULT) -> pd.DataFrame:
    """The nine edits at slot 0 on centred lines of squares, by edit and axis."""
    table = record.table(model, "tables/fingerprint.csv")
    table = table[(table["setting"] == "squares") & table["centred"] & (table["slot"] == 0)]
    return table.set_index(["edit", "orientation"])


def both(values: pd.Series) -> str:
    """The values of both axes, left-right first."""
    return joined(values[list(AXES)])


def joined(values: pd.Series) -> str:
    """Values in their order."""
    return " and ".join(decimals(value) for value in values)


def models_table() -> pd.DataFrame:
    """The four rivals of all embedded models at slot 0, a row per model, axis and rival."""
    return record.table(DEFAULT, "figures/02-models.csv")


def rivals(values: str = "value") -> pd.DataFrame:
    """Their values, or a bound of their intervals ("low", "high"): a row per model and axis, a column per rival."""
    return models_table().pivot_table(index=["model", "orientation"], columns="rival", values=values, sort=False)


def after_ablation() -> pd.DataFrame:
    return record.table(DEFAULT, "figures/02-ablation.csv").set_index(["model", "orientation"])


def four() -> str:
    """The four rivals: what each says, its own edit, and that edit's effect in a few models."""
    table = models_table().set_index(["model", "orientation", "rival"])
    lines = []
    for rival, (meaning, edit) in SOURCES.items():
        cells = [" / ".join(in_bold(table.loc[(model, axis, rival)]) for axis in AXES) for model in SHOWN]
        lines.append((f"**{rival}** {meaning}", str(edit), *cells))
    head = ["what tells which object is on the left", "edit", *markdown.code(SHOWN)]
    caption = (
        f"Effect of each edit on left-right / above-below of Squares, at least {int(models_table()['n'].min())} pairs "
        "each: 0, the answer stays; 1, it becomes the mirror picture's; other words count half. Bold: the whole 95 % interval is above 1/2.\n"
    )
    return markdown.table(head, lines) + "\n" + caption


def in_bold(row: pd.Series) -> str:
    """A value in two digits, bold where the whole interval is above 1/2."""
    return f"**{decimals(row['value'])}**" if row["low"] > 0.5 else decimals(row["value"])


def findings() -> str:
    """What was found, a sentence per result, numbers from the tables."""
    table, left = rivals(), after_ablation()
    return numbered([paper(), seed_by_seed(table), positive_control(table, left), by_axis(table, left)])


def numbered(parts: list[str], first: int = 1) -> str:
    """A list of findings with the numbers that docs/RESULTS.md calls them by."""
    return "".join(part.replace("- **", f"- **F{k}. ", 1) + "\n" for k, part in enumerate(parts, first))


def more() -> str:
    """What else was found, for docs/RESULTS.md."""
    return numbered([place_and_source(rivals()), positions(), strips_unused(), enhancement(), schemes()], first=5)


def paper() -> str:
    """The paper's observation and the edits that tell its explanation from its rivals."""
    table = fingerprint()
    edit = table["effect"]
    return (
        f"- **In `{DEFAULT}` strips from the mirror picture move the answer and objects alone hardly do, as in the paper; but exchanging the strips' background *within* the picture does nothing.** From the mirror picture, strips move it {both(edit[2])} of the way (edit 2; left-right, above-below; {table['n'].min()} pairs or more, fewer in the table), objects alone {both(edit[1])} (edit 1), the strips' background {both(edit[3])} (edit 3), all background {both(edit[5])} (edit 5); all leave {decimals(table['on_the_two'].min())} or more on the two candidates. "
        f"Exchanged within the picture, strips' background should flip the answer if it told which strip is which: {both(edit[9].abs())} (edit 9). Not excluded: a strip code tied to the object on the strip. "
        f"Winning is not being needed: with an empty canvas's background {both(emptied('correct'))} stay correct{confused()}."
    )


def emptied(measure: str) -> pd.Series:
    """A measure of the answers to centred squares by axis, with the background of the empty canvas."""
    table = record.table(DEFAULT, "tables/ladder.csv")
    table = table[(table["setting"] == "squares") & (table["step"] == "empty background")]
    return table[table["measure"] == measure].set_index("orientation")["value"]


def confused() -> str:
    """What the wrong answers with that background are, where most of them name neither object."""
    neither = emptied("names_neither")
    return f" ({both(neither)} name neither object)" if (neither > (1 - emptied("correct")) / 2).all() else ""


def seed_by_seed(table: pd.DataFrame) -> str:
    """Where the trainings of one recipe keep order, beside what can be read from an object's own tokens; table:
    `rivals`."""
    names = list(seeds(DEFAULT).values())
    scene = [name for name in names if table.loc[name, "B"].min() > 0.5]
    objects = [name for name in names if table.loc[name, "O"].min() > 0.5]
    return f"- **Trainings of one recipe differ in what decides.** Of {len(names)} trainings of `{DEFAULT}`, in {len(scene)} the background wins (B {span(table.loc[scene, 'B'])}), in {len(objects)} the objects (O {span(table.loc[objects, 'O'])}, B at most {decimals(table.loc[objects, 'B'].abs().max())})."


def place_and_source(table: pd.DataFrame) -> str:
    """What goes with the source that wins, over the trainings with a frozen encoder; table: `rivals`."""
    kept = {name: place_readable(name) for name in frozen(table)}
    scene = {name: table.loc[name, "B"].min() > 0.5 for name in kept}
    wins, loses = (pd.Series([x for name, x in kept.items() if scene[name] == where]) for where in (True, False))
    over = f"Over the {len(kept)} trainings with a frozen encoder"
    if wins.empty or loses.empty:
        return f"- **Place in the objects' own tokens: no contrast.** {over} the background wins in {len(wins)}, so that nothing can be said about what goes with it."
    if wins.max() < loses.min():
        return f"- **Where the background wins, objects say little of their own place.** {over} the source that wins goes with how well row and column of an object can be read from its own tokens once the encoder is trained: R2 {span(wins)} where the background wins, {decimals(loses.min())} or more where it does not. This was seen afterwards, and {len(kept)} models cannot show that it is the cause."
    return f"- **How well objects say their own place does not settle which source wins.** {over}, row and column of an object can be read from its own tokens once the encoder is trained with R2 {span(wins)} where the background wins and {span(loses)} where it does not: the ranges overlap."


def staged() -> list[str]:
    """Models that are made in stages as the default one, with other position schemes."""
    return [model.name for model in MODELS if model.purpose == "staged"]


def frozen(table: pd.DataFrame) -> list[str]:
    """The trainings with an encoder that was trained first and then frozen; table: `rivals`."""
    measured = set(table.index.get_level_values(0))
    return [name for name in (*seeds(DEFAULT).values(), *staged()) if name in measured]


def span(values: pd.DataFrame | pd.Series) -> str:
    return f"{decimals(values.min())} to {decimals(values.max())}"


def place_readable(name: str) -> float:
    """The lower R2 of row and column of an object, read from its tokens at the end of the encoder's training."""
    entries = [json.loads(line) for line in (places.MODELS / name / "training.jsonl").read_text("utf-8").splitlines()]
    last = [entry for entry in entries if entry["stage"] == "encoder" and "row" in entry][-1]
    return min(last["row"], last["column"])


def positive_control(table: pd.DataFrame, left: pd.DataFrame) -> str:
    """The planted strip code; table: `rivals`, left: `after_ablation`."""
    own, kept = table.loc["strip_code"], left.loc["strip_code", "accuracy"]
    return (
        f"- **Where the background does tell strips apart, the test finds it.** In `strip_code`, built to be that reading of the paper, edit 9 moves the answer {both(own['S'])} of the way; elsewhere at most {decimals(table.drop('strip_code')['S'].abs().max())}. "
        f"It still answers {both(kept)} correctly after the paper's ordering ablation (background from an empty canvas, each object from where it stands alone in the middle): the empty canvas carries the code, too. So this ablation does not remove such a code."
    )


def by_axis(table: pd.DataFrame, left: pd.DataFrame) -> str:
    """Models in which the two axes rest on different sources; table: `rivals`, left: `after_ablation`."""
    together, apart = ["qwen_joint", "pixtral_joint"], ["qwen_style", "pixtral_style"]
    vertical, across = (table.xs(axis, level="orientation") for axis in ("vertical", "horizontal"))
    kept = left.xs("vertical", level="orientation")["accuracy"]
    return (
        f"- **Left-right and above-below can rest on different sources.** `{together[0]}` and `{together[1]}` take left-right from the objects (O {decimals(across.loc[together, 'O'].min())}), above-below from token places (P {decimals(vertical.loc[together, 'P'].min())}){planted_apart(table)}. "
        f"`{apart[0]}` and `{apart[1]}` take left-right from the objects, above-below from objects and token places together: {together_only(apart)}. F3's ablation leaves {joined(kept[apart])} correct (chance: 0.50)."
    )


def together_only(names: list[str], axis: str = "vertical") -> str:
    """What object tokens do with their places and without: edits 1, 6 and 8, and what they send to other words."""
    own = {name: fingerprint(name).xs(axis, level="orientation") for name in names}
    effect = pd.DataFrame({name: table["effect"] for name, table in own.items()})
    lost = pd.DataFrame({name: 1 - table["on_the_two"] for name, table in own.items()})
    said = {edit: f"{joined(effect.loc[edit].abs())} [{joined(lost.loc[edit])}]" for edit in (1, 6, 8)}
    return f"crossed objects (edit 1) move it {said[1]} of the way, places (edit 8) {said[8]}, both at once (edit 6) {said[6]}; in brackets what goes to other words"


def planted_apart(table: pd.DataFrame, name: str = "split") -> str:
    """What the edits say of the planted model whose axes rest on different sources by construction."""
    if name not in table.index.get_level_values(0):
        return ""
    largest = [f"{table.loc[(name, axis)].idxmax()} {decimals(table.loc[(name, axis)].max())}" for axis in AXES]
    return f"; `{name}`, built so, shows {largest[0]} and {largest[1]}"


def strips_unused(model: str = "qwen_style") -> str:
    """A model in which strips are visible and not used."""
    seen = [row["value"] for row in record.rows(model) if row["metric"] == "strips_beyond_bare"]
    used = [abs(row["value"]) for row in record.rows(model) if row["metric"] == "strip_code"]
    return f"- **Strips that a probe sees need not be used.** In `{model}` a probe trained on objects sees strips over the background (C3: score {decimals(min(seen))} to {decimals(max(seen))} above an empty canvas), and exchanging them changes nothing (C4: at most {decimals(max(used))})."


def enhancement() -> str:
    """C7 on every model that ran it: repaired failures beyond random directions, both axes together."""
    said, verdicts, harmful = [], [], 0
    for name, own in record.compared().items():
        for row in own:
            if row["metric"] == "repaired_beyond_random" and not row.get("axis"):
                verdicts.append(row["verdict"])
                harmful += row["high"] < 0
                cost = f" ({broken(name)})" if row["verdict"] == "reproduced" else ""
                said.append(f"`{name}` {ledger.in_figures(row)} of {row['n']} failures, {row['verdict']}{cost}")
    repairing = verdicts.count("reproduced")
    fewer = f", and less in {harmful}" if harmful else ""
    head = (
        f"Turning up order directions repairs more than a random push in {repairing} of {len(verdicts)} models{fewer}."
        if repairing
        else "Turning up order directions is not shown to repair more than a random push."
    )
    return f"- **{head}** Share of failures repaired along the exact probe's directions, minus that along random ones of equal size (C7, both axes together): {'; '.join(said)}."


def broken(model: str) -> str:
    """What the directions of the exact probe break, beside the random sets of equal size."""
    table = record.table(model, "tables/enhancement.csv")
    table = table[table["alpha"] == table["alpha"].max()].drop_duplicates("condition").set_index("condition")["broken"]
    sets = table[table.index.str.match(r"random \d+$")]
    return f"it breaks {decimals(table['exact probe'])} of the correct answers, the random sets {span(sets)}"


def positions() -> str:
    """What other positions of the image tokens do to the axis that survives the ablation, with the control that tells
    whether the route from token places still works under new numbers."""
    said, unread = [], []
    for name in (name for name in staged() if name in record.models()):
        table = record.table(name, "figures/02-positions.csv")
        table = table[(table["orientation"] == "vertical") & (table["step"] == STEPS[-1])]
        left = table[table["measure"] == "named"].set_index("scheme")
        neither = table[table["measure"] == "names_neither"].set_index("scheme")["value"]
        if neither["own"] > 1 - position_schemes.NAMED or left.loc["own", "low"] <= 0:
            unread.append(name)
            continue
        own, dropped, control = (decimals(left.loc[scheme, "value"]) for scheme in ("own", "columns", "rows"))
        holds = left.loc["rows", "low"] > 0.5
        what = "the loss is one of information" if holds else "the control falls, too, so that the loss may be damage"
        said.append(f"`{name}` {own}, {dropped}, control {control}: {what}")
    rest = (
        f" Nothing to follow in {', '.join(markdown.code(unread))}: no above-below order is shown to be left, or most answers name neither candidate."
        if unread
        else ""
    )
    return (
        "- **Position numbers carry part of the axis that survives where the control holds.** The above-below order that the ablation leaves (1: all of it) under the backbone's own position numbers; with one number per column, "
        f"which no longer tells rows apart; and, as a control, with one number per row, equally new but telling rows apart (16 pairs each): {'; '.join(said)}.{rest}"
    )


def schemes() -> str:
    """Embedded models beside the published checkpoint with their position scheme, from the paper's own counts."""
    table = record.table(DEFAULT, "figures/02-ablation.csv")
    embedded = table[table["names_neither"].notna() & ~table["model"].isin(PLANTED)]
    compared = published_counts.beside_checkpoints(embedded)
    said = published_counts.scheme_verdict(compared)
    differ = (compared["compared"] == "differs").any()
    head = (
        "Nothing shows that the position scheme decides which axis survives."
        if differ
        else "Does the position scheme decide which axis survives?"
    )
    return f"- **{head}** The paper's counts on published checkpoints, per axis on Squares after its ablation, beside the embedded models of the same class ({' or '.join(map(str, sorted(compared['total'].unique())))} questions each): {said} How many answers of a checkpoint name neither candidate is not known, so that its order may be lost to confusion."


def sources() -> str:
    """Where the order comes from, a line per model: the sources with an effect of .05 or more on each axis, and
    accuracy after the ablation."""
    table, lows, left, answers, lines = rivals(), rivals("low"), after_ablation(), answers_left(), []
    lost = answers[answers < MOSTLY].index
    for model in dict.fromkeys(table.index.get_level_values(0)):
        cells = []
        for axis in AXES:
            own = table.loc[(model, axis), list(RIVALS)].sort_values(ascending=False)
            unclear = {rival for rival in own.index if (model, axis, rival) in lost}
            said = {
                rival: f"{rival} {decimals(value)}{DAGGER if rival in unclear else ''}"
                for rival, value in own.items()
                if value >= 0.05
            }
            wins = {rival for rival in said if lows.loc[(model, axis), rival] > 0.5} - unclear
            bold = [f"**{x}**" if rival in wins else x for rival, x in said.items()]
            cells.append(", ".join(bold) or "none")
        kept = [decimals(left.loc[(model, axis), "accuracy"]) if (model, axis) in left.index else "" for axis in AXES]
        lines.append((f"`{model}`", *cells, ", ".join(kept)))
    head = ["model", "left-right", "above-below", "correct after the ablation"]
    return markdown.table(head, lines) + "\n" + answers_kept(answers) + "\n"


def answers_left() -> pd.Series:
    """Probability that a source's own edit leaves on the two candidates, by model (with a published table), axis and
    source."""
    edits = {edit: rival for rival, (_, edit) in SOURCES.items()}
    left = pd.concat({name: fingerprint(name)["on_the_two"] for name in record.models()}, names=["model"])
    return left.unstack("edit")[list(edits)].rename(columns=edits).stack()


def answers_kept(left: pd.Series) -> str:
    """How much stays with the two candidates, and where it does not; left: `answers_left`."""
    text = f"An answer that goes to words other than the two candidates counts as half an effect. In the {left.index.get_level_values('model').nunique()} models whose notebook 02 is published the edits behind these values leave {decimals(left[left >= MOSTLY].min())} or more of the probability on the two"
    low = [f"`{model}` {AXES[axis]}, {rival} {decimals(x)}" for (model, axis, rival), x in left[left < MOSTLY].items()]
    if not low:
        return f"{text}."
    return f"{text}, except where {DAGGER} stands ({'; '.join(low)}): there a value near 1/2 says that the answer is lost, not that half of it has moved."


def claims() -> str:
    """The claims in plain words with their rivals, and a letter per verdict for the models on which all were measured."""
    every = {measure.claim for _, measure in ledger.by_claim()}
    rows = {name: own for name, own in record.compared().items() if every <= {row["claim"] for row in own}}
    lines = []
    for metric, (sentence, rival) in CLAIMS.items():
        cells = [said(own, metric, LETTERS) for own in rows.values()]
        if any(cells):
            lines.append((sentence, rival, *cells))
    return markdown.table(["claim", "rival it tests", *markdown.code(rows)], lines)


def said(rows: list[dict], metric: str, words: dict[str, str] | None = None) -> str:
    """The verdicts on a metric in short, with counts where they differ; empty where nobody measured it.

    words: what stands for each verdict, default itself.
    """
    counts = Counter(row["verdict"] for row in rows if row["metric"] == metric)
    shown = [((words or {}).get(verdict, verdict), count) for verdict, count in counts.most_common()]
    return shown[0][0] if len(shown) == 1 else ", ".join(f"{word} {count}" for word, count in shown)
