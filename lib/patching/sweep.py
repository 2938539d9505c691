"""Sweeps: an intervention at each slot in turn, data in, tidy table out.

Every sweep takes runs (prompts, each with its picture as image tokens) and candidate ids, and returns one row per pair,
slot and candidate role with its probability and logit. Rows of the unpatched runs stand in the same table, so that
every figure can show its baselines: `run` is "clean", "counterfactual" or "patched", and baselines have slot -1.

All sweeps are steps of `lib.parts`, and so is every batch inside them: a killed run that is started again goes on with
the batch it was at, and its table is bit by bit that of a run that was not killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor, equal

from lib.engine.tensors import Ids
from lib.engine.vlm import VLM
from lib.errors import UserError
from lib.parts import resumed
from lib.patching.edits import LAST_TOKEN, Along, Amplification, Interchange
from lib.patching.results import BASELINE, Table
from lib.patching.routes import EncoderPatches, ImageTokensOfPairs, Knockout, Patch, QuestionTokens, Route
from lib.patching.runs import Pairs, Run, checked_slots
from lib.patching.sites import RESIDUAL, Site


def run_pairs(
    table: Table,
    clean: Run,
    counterfactual: Run | None,
    route: Callable[[Pairs], Route],
    progress: bool = True,
) -> pd.DataFrame:
    """All pairs along a route, as a table; what an earlier, killed run has kept is not computed again."""
    if len(table.ids) != len(clean) or (counterfactual is not None and len(counterfactual) != len(clean)):
        raise UserError("A sweep needs one counterfactual run and one row of candidates per clean run.")
    if not len(clean):
        raise UserError("A sweep needs at least one pair.")

    def whole():
        taken = route(Pairs(clean, counterfactual))

        def work(frame, units, parts):  # all rows of a pair belong to one batch
            pairs = np.concatenate([group.rows[part].numpy() for group, part, _ in parts])
            yield resumed(f"pairs {_digest(pairs)}", computed, frame, units, parts)

        def computed(frame, units, parts):
            found = [table.versions(rows, versions) for rows, versions in taken.batch(frame, units, parts)]
            return pd.concat(found, ignore_index=True)

        each = table.vlm.language.each(clean.prompt, taken.units, work, progress, taken.cost, taken.unit)
        return table.finish(list(each))

    return resumed(f"sweep {_inputs(table, clean, counterfactual)}", whole)


def _inputs(table: Table, *runs: Run | None) -> str:
    """Digest of what a sweep is asked: model, questions, which pictures, candidates and labels.

    Not of floating-point numbers, which may differ in the last bit when they are computed again: pictures and edits
    follow from the parameters of the run.
    """
    vlm, asked = table.vlm, [table.ids, *table.roles]
    for run in runs:
        asked += [] if run is None else [run.prompt.ids, run.prompt.image, run.index]
    labels = "" if table.labels is None else table.labels.to_csv(index=False)
    return _digest(vlm.name, vlm.dtype, vlm.language.marks, labels, *asked)


def _digest(*values) -> str:
    digest = hashlib.sha256()
    for value in values:
        value = value.cpu().numpy() if isinstance(value, Tensor) else value
        plain = isinstance(value, np.ndarray)
        digest.update(f"{value.shape};".encode() + value.tobytes() if plain else f"{value};".encode())
    return digest.hexdigest()[:16]


def sweep(
    vlm: VLM,
    clean: Run,
    counterfactual: Run | None,
    edits: dict[str, Callable],
    ids: Ids,
    roles: Sequence[str],
    sites: Sequence[Site] = (RESIDUAL,),
    labels: pd.DataFrame | None = None,
    slots: Iterable[int] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Every edit at every site and slot of the language model; columns `edit` and `site` name them.

    edits: {name: Interchange}, either all of image tokens or all of question tokens; for image tokens also any function
    with its call and key. Edits of image tokens need the same questions in both runs. slots: 0..L of
    the residual stream; at any other site slot l is layer l, and L does not exist.
    """
    patches = [
        Patch(f"{name} {site.name}", edit, site, tuple(_of_site(slots, site, vlm)), {"site": site.name, "edit": name})
        for site in sites
        for name, edit in edits.items()
    ]
    table = Table(vlm, ids, tuple(roles), labels)
    none = {"site": "none", "edit": "none"}
    return _run_patches(table, clean, counterfactual, patches, none, progress)


def _of_site(slots: Iterable[int] | None, site: Site, vlm: VLM) -> list[int]:
    known = site.slots(vlm.language)
    return [slot for slot in checked_slots(slots, vlm.slots) if slot in known]


def _run_patches(
    table: Table, clean: Run, counterfactual: Run | None, patches: list[Patch], baseline: dict, progress: bool
):
    """Run patches along the route for image tokens or the one for question tokens, whichever they edit."""
    question = {isinstance(patch.edit, Interchange) and patch.edit.in_question for patch in patches}
    if question == {True, False}:
        raise UserError("Edits of image tokens and of question tokens need a sweep each.")
    kind = QuestionTokens if question == {True} else ImageTokensOfPairs
    if kind is QuestionTokens and counterfactual is None:
        raise UserError("Edits of question tokens need counterfactual runs.")
    if kind is ImageTokensOfPairs and counterfactual is not None:
        both = (clean.prompt.ids, counterfactual.prompt.ids)
        if both[0].shape != both[1].shape or not equal(*both):
            raise UserError("Edits of image tokens need the same questions in the clean and the counterfactual runs.")
        if counterfactual.images is not clean.images:
            raise UserError("Edits of image tokens need clean and counterfactual pictures in one list of image tokens.")
    return run_pairs(
        table, clean, counterfactual, lambda pairs: kind(table.vlm, pairs, patches, baseline, progress), progress
    )


# --- the sweeps of the paper ----------------------------------------------------------------------------------


def last_token_sweep(
    vlm: VLM,
    clean: Run,
    counterfactual: Run,
    ids: Ids,
    roles: Sequence[str],
    labels: pd.DataFrame | None = None,
    slots: Iterable[int] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Replace the clean run's last token by the counterfactual's, slot by slot, and read the answer (PROTOCOL.md 2)."""
    patch = Patch("last", LAST_TOKEN, RESIDUAL, tuple(checked_slots(slots, vlm.slots)), {})
    return _run_patches(Table(vlm, ids, tuple(roles), labels), clean, counterfactual, [patch], {}, progress)


def token_sweep(
    vlm: VLM,
    run: Run,
    edits: dict[str, Callable],
    ids: Ids,
    roles: Sequence[str],
    other=None,
    labels: pd.DataFrame | None = None,
    slots: Iterable[int] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit image tokens at each slot in turn and read the answer (PROTOCOL.md 4 and 6); column `edit` names the edit.

    run: the clean run. other: for each pair the number of its counterfactual picture in run.images; the question is the
    same.
    """
    slots = tuple(checked_slots(slots, vlm.slots))
    patches = [Patch(name, edit, RESIDUAL, slots, {"edit": name}) for name, edit in edits.items()]
    other = None if other is None else Run(run.prompt, run.images, np.asarray(other))
    table = Table(vlm, ids, tuple(roles), labels)
    return _run_patches(table, run, other, patches, {"edit": "none"}, progress)


def encoder_sweep(
    vlm: VLM,
    pictures: Sequence,
    run: Run,
    other,
    edits: dict[str, Interchange],
    ids: Ids,
    roles: Sequence[str],
    labels: pd.DataFrame | None = None,
    slots: Iterable[int] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Interchange patches inside the image encoder at each encoder slot, then answer with the resulting image tokens.

    pictures: the pictures behind run.images, in the same order. edits: token sets shared by all pairs.
    """
    slots, other = checked_slots(slots, vlm.encoder_slots), Run(run.prompt, run.images, np.asarray(other))
    table = Table(vlm, ids, tuple(roles), labels)
    return run_pairs(
        table, run, other, lambda pairs: EncoderPatches(vlm, pairs, pictures, edits, slots, {"edit": "none"}),
        progress,
    )  # fmt: skip


def amplification_sweep(
    vlm: VLM,
    run: Run,
    directions: dict[str, Tensor | Callable],
    alphas: Sequence[float],
    ids: Ids,
    roles: Sequence[str],
    mode: str = "project",
    slot: int = 0,
    labels: pd.DataFrame | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Add alpha times a change to the image tokens at a slot, for every alpha (PROTOCOL.md 7); columns `edit` (name),
    `alpha` and `is_top` (the most probable token of the whole vocabulary is a spelling of the role).

    directions: {name: directions as `Along` takes them, or any function with its call and key, such as
    enhancement.Change}. A picture is amplified once for all questions about it with one key (say, with the options in
    both orders).
    """
    if vlm.language.wide_because:
        raise UserError(f"Image tokens of {vlm.name} cannot be amplified at one slot: {vlm.language.wide_because}.")
    slots, alphas = tuple(checked_slots([slot], vlm.slots[:-1])), [float(alpha) for alpha in alphas]
    patches = [
        Patch(f"{name} {alpha}", Amplification(change, alpha), RESIDUAL, slots, {"edit": name, "alpha": alpha})
        for name, change in ((n, w if callable(w) else Along(w, mode)) for n, w in directions.items())
        for alpha in alphas
    ]
    table = Table(vlm, ids, tuple(roles), labels, is_top=True)
    return _run_patches(table, run, None, patches, {"edit": "none", "alpha": 0.0}, progress)


def knockout_sweep(
    vlm: VLM,
    run: Run,
    token_sets: dict[str, np.ndarray],
    ids: Ids,
    roles: Sequence[str],
    layers: Sequence[range] | None = None,
    labels: pd.DataFrame | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Cut the last token off from image tokens in ranges of layers; columns `edit` (set), `slot` (first layer), `stop`.

    token_sets: {name: [token] or [pair, token]}. layers: ranges of layers, default each layer alone.
    """
    spans = [range(i, i + 1) for i in range(len(vlm.layers))] if layers is None else list(layers)
    baseline = {"stop": BASELINE, "edit": "none"}
    route = lambda pairs: Knockout(vlm, pairs, token_sets, spans, baseline)  # noqa: E731
    return run_pairs(Table(vlm, ids, tuple(roles), labels), run, None, route, progress)
