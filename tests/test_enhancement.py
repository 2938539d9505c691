"""Enhancement on planted models, where the order directions are known: it repairs what was made to fail, random
directions do not; counting and choosing alpha on hand-made results; `enhance` around generate leaves no trace."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_photographs import SAMPLES, needs_coco, needs_whatsup
from tiny import tiny

from lib.analysis import enhancement, statistics
from lib.analysis.enhancement import Change, ItemRun
from lib.engine import oracle
from lib.errors import UserError
from lib.patching.edits import along, amplify
from lib.patching.runs import Run, tokens_at
from lib.stimuli import facts, grids, photographs, questions, scenes
from lib.stimuli.token_sets import box_tokens, object_tokens

QUESTION = "which side is the square to the left"
COUNT = 24


# --- a planted model ------------------------------------------------------------------------------------------


def side_item(number: int, relation: str, canvas: int) -> questions.SideItem:
    """A subject and a reference in opposite corners of a picture that is never drawn."""
    low, high = (0, 0, canvas // 3, canvas // 3), (canvas - canvas // 3,) * 2 + (canvas,) * 2
    boxes = (low, high) if relation in enhancement.FIRST else (high, low)
    return questions.SideItem("planted", str(number), None, "square", "shape", relation, *boxes, (canvas, canvas))


@pytest.fixture(scope="module")
def planted():
    """A model that answers by the sign of the image tokens along one known direction, and pictures in which that part
    is damped to a fiftieth, so that noise decides."""
    vlm = tiny("reference", seed=1)
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
    sign = torch.tensor([1.0, -1.0]).repeat(COUNT // 2)
    noise = torch.randn(COUNT, 36, 32, generator=generator) * 0.5
    noise = noise - (noise @ direction)[..., None] * direction
    whole = noise + 2.0 * sign[:, None, None] * direction
    prompt = vlm.tokens([QUESTION] * COUNT)
    last = vlm.language.norm(vlm.forward(prompt, whole).last).detach()
    up, down = last[sign > 0].mean(0), last[sign < 0].mean(0)
    middle = (up + down) / 2
    reads = (up - down) - middle * ((up - down) @ middle) / (middle @ middle)
    left, right = (int(vlm.candidates([[word]])[0, 0, 0]) for word in ("left", "right"))
    with torch.no_grad():
        vlm.model.lm_head.weight.zero_()
        vlm.model.lm_head.weight[left], vlm.model.lm_head.weight[right] = 9 * reads, -9 * reads
    items = tuple(side_item(k, "left" if s > 0 else "right", vlm.grid.canvas) for k, s in enumerate(sign))
    damped = whole - 0.98 * (whole @ direction)[..., None] * direction
    item_of = np.repeat(np.arange(COUNT), 2)

    def asked(images):
        run = Run(vlm.tokens([QUESTION] * 2 * COUNT), images, item_of)
        return ItemRun(vlm, items, run, item_of, np.arange(COUNT))

    return asked(whole), asked(damped), direction


def test_amplification_repairs_what_was_made_to_fail_and_random_directions_do_not(planted):
    whole, damped, direction = planted
    assert enhancement.correct(whole).all()
    directions = {"horizontal": direction[None]}
    order = enhancement.change(damped, directions)
    changes = {"order": order}
    for k in range(20):
        other = enhancement.change(damped, enhancement.random_directions(directions, seed=k))
        changes[f"random {k}"] = enhancement.matched_in_size(other, order, damped.run.images)
    changes["complement"] = enhancement.matched_in_size(replace(order, mode="complement"), order, damped.run.images)
    results = enhancement.sweep(damped, changes, [0.0, 49.0])
    assert 4 <= (~results["before"]).sum() / len(changes) / 2 <= COUNT - 4, "damping must make some fail, not all"
    found = enhancement.score(results).set_index(["condition", "alpha"])
    assert found.loc[("order", 49.0), "repaired"] == 1 and found.loc[("order", 49.0), "broken"] == 0
    assert found.loc[("order", 49.0), "strict_accuracy"] == 1
    assert (found.xs(0.0, level="alpha")[["repaired", "broken", "net"]] == 0).all(axis=None)
    random = found.xs(49.0, level="alpha").drop("order")
    gain = found.loc[("order", 49.0), "net"]
    assert random["repaired"].mean() < 0.5 and random["net"].mean() < 0 < gain
    assert (
        statistics.rank_p(gain, random["net"]) < 0.1
    )  # 1 of 21: in 32 dimensions one random set may lie near the true one


def test_directions_are_found(planted):
    """Object means lie along the planted direction, first plus, last minus; labels shuffled they do not."""
    whole, _, direction = planted
    images = torch.randn(COUNT, 36, 32, generator=torch.Generator().manual_seed(1))
    for k, item in enumerate(whole.items):
        first, last = enhancement.end_tokens(item, whole.vlm.grid)
        images[k, first] += 3 * direction
        images[k, last] -= 3 * direction
    asked = replace(whole, run=replace(whole.run, images=images))

    def cosine(**options):
        w = enhancement.order_directions(asked, **options)["horizontal"]
        return float(torch.cosine_similarity(w[0] - w[1], direction, dim=0))

    assert cosine(recipe="logistic") > 0.9
    assert cosine() > 0.4, "the paper's recipe keeps much of its random start"
    assert abs(cosine(recipe="logistic", shuffled=True)) < 0.7
    assert set(enhancement.order_directions(asked)) == {"horizontal"}
    assert enhancement.object_means(asked).shape == (COUNT, 2, 32)


def test_directions_and_changes_of_a_model_in_bfloat16():
    vlm = tiny("reference")
    vlm.model.bfloat16()
    items = enhancement.one_axis_each(questions.natural_questions(vlm.grid, scenes.HELD_OUT_PHOTOGRAPHS, n=60))
    asked = enhancement.item_run(vlm, items)
    directions = enhancement.order_directions(asked)
    images = asked.run.images
    for mode in ("project", "complement"):
        added = enhancement.change(asked, directions, mode=mode)(images[asked.run.index[:4]], np.arange(4))
        assert added.dtype == torch.bfloat16 and torch.isfinite(added).all()


def test_ends_are_in_the_order_of_the_axis(planted):
    vlm = planted[0].vlm
    for relation in questions.DIRECTIONS:
        first, last = enhancement.end_tokens(side_item(0, relation, vlm.grid.canvas), vlm.grid)
        assert first.max() < last.min()
    line = questions.questions("squares", vlm.grid)[-1]
    for end, slot in zip(enhancement.end_tokens(line, vlm.grid), (0, 2), strict=True):
        assert list(end) == list(object_tokens(vlm.grid, line.orientation, slot))


# --- changes --------------------------------------------------------------------------------------------------


@pytest.fixture
def directions():
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(2, 8, generator=generator) for name in grids.ORIENTATIONS}


AXIS = np.array(["horizontal", "vertical", "vertical"])
ROWS = np.arange(3)


def test_changes_by_hand(directions):
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(4))
    plain = Change(directions, AXIS)
    for row, axis in enumerate(AXIS):
        assert torch.allclose(plain(tokens, ROWS)[row], along(tokens[row], directions[axis]), atol=1e-6)
    one = plain(tokens[1:2], np.array([1]))
    assert torch.allclose(one, plain(tokens, ROWS)[1:2], atol=1e-6)
    where = np.zeros((3, 5), dtype=bool)
    where[:, 2] = True
    masked = replace(plain, where=where)(tokens, ROWS)
    assert torch.equal(masked[:, [0, 1, 3, 4]], torch.zeros(3, 4, 8)) and torch.equal(
        masked[:, 2], plain(tokens, ROWS)[:, 2]
    )
    order = np.array([4, 3, 2, 1, 0])
    assert torch.equal(replace(plain, order=order)(tokens, ROWS), plain(tokens, ROWS).flip(1))
    rest = replace(plain, mode="complement")(tokens, ROWS)
    assert (rest[0] @ directions["horizontal"].T).abs().max() < 1e-5 < rest.abs().max()
    assert replace(plain, mode="centred")(tokens, ROWS).sum(1).abs().max() < 1e-5
    assert plain.key(0) != plain.key(1) == plain.key(2) != replace(plain, where=where).key(2)
    with pytest.raises(UserError, match="no directions for the vertical axis"):
        Change({"horizontal": directions["horizontal"]}, AXIS)(tokens, ROWS)


def test_nulls_are_matched_in_norm_and_in_size(directions):
    images = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(5)) + 2.0
    order = Change(directions, AXIS)
    random = enhancement.random_directions(directions, seed=1)
    for name, w in directions.items():
        assert torch.allclose(random[name].norm(dim=-1), w.norm(dim=-1))
        assert not torch.allclose(random[name], enhancement.random_directions(directions, seed=2)[name])
    null = enhancement.matched_in_size(Change(random, AXIS), order, images)
    for name, size in enhancement.mean_sizes(order, images).items():
        assert enhancement.mean_sizes(null, images)[name] == pytest.approx(size, rel=1e-5)
        assert enhancement.mean_sizes(Change(random, AXIS), images)[name] != pytest.approx(size, rel=1e-2)
    assert torch.equal(enhancement.both_axes(directions)["vertical"], torch.cat(list(directions.values())))
    assert enhancement.other_axis(directions)["vertical"] is directions["horizontal"]


# --- counts and choices -----------------------------------------------------------------------------------------


def results(rows) -> pd.DataFrame:
    """Rows (item, scene, alpha, before, after) of one condition."""
    table = pd.DataFrame(rows, columns=["item", "scene", "alpha", "before", "after"])
    table[["before", "after"]] = table[["before", "after"]].astype(bool)
    return table.assign(condition="order", p_after=table["after"] * 1.0)


def test_both_ways_to_count():
    """Ten items, six right: three of the four failures repaired, two of the six right ones broken."""
    after = [1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
    found = enhancement.score(results([(k, k, 1.0, k >= 4, a) for k, a in enumerate(after)])).iloc[0]
    assert found["n"] == 10
    assert found["repaired"] == pytest.approx(3 / 4) and found["broken"] == pytest.approx(2 / 6)
    assert found["strict_accuracy"] == pytest.approx(0.7) and found["paper_accuracy"] == pytest.approx(0.9)
    assert found["net"] == pytest.approx(0.1)
    for name in ("net", "repaired", "broken"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["low"] < 0.7 < found["high"]


def test_nothing_to_repair_is_no_number():
    found = enhancement.score(results([(k, k, 1.0, True, k > 0) for k in range(4)])).iloc[0]
    assert np.isnan(found["repaired"]) and found["broken"] == pytest.approx(0.25)


def test_weights_count_rows_several_times():
    """A sample in which the right items stand for four each gives what the whole table gives."""
    whole = results([(k, k, 1.0, k >= 4, k % 3 > 0) for k in range(20)])
    part = whole[(whole["item"] < 4) | (whole["item"] % 4 == 3)]
    part = part.assign(weight=np.where(part["before"], 16 / part["before"].sum(), 1.0))
    found, all_of_them = (enhancement.score(table).iloc[0] for table in (part, whole))
    assert found["repaired"] == all_of_them["repaired"]
    assert found["net"] == pytest.approx(0.2 * found["repaired"] - 0.8 * found["broken"])
    once = enhancement.score(part.assign(weight=3.0)).iloc[0]  # only their ratio matters
    assert once["strict_accuracy"] == pytest.approx(part["after"].mean())


def test_alpha_is_chosen_on_the_other_fold():
    """On pure noise the best alpha in sample looks good, cross-fitted it does not."""
    rng, inside, honest = np.random.default_rng(0), [], []
    for seed in range(40):
        table = results([(k, k, float(a), k % 2, rng.uniform() < 0.5) for a in range(1, 21) for k in range(60)])
        inside.append(enhancement.in_sample(table)["after"].mean())
        honest.append(enhancement.cross_fitted(table, seed=seed)["after"].mean())
    assert np.mean(inside) > 0.58 and abs(np.mean(honest) - 0.5) < 0.03
    assert enhancement.per_item(table)["after"].all() and len(enhancement.per_item(table)) == 60
    fitted = enhancement.cross_fitted(table)
    assert sorted(fitted["item"]) == list(range(60)) and fitted.groupby("fold")["alpha"].nunique().max() == 1


def test_folds_are_of_whole_scenes_and_ties_take_the_smallest_change():
    table = results([(k, k // 5, a, k % 2, 1) for a in (4.0, 1.0, 2.0) for k in range(40)])
    assert enhancement.cross_fitted(table).groupby("scene")["fold"].nunique().max() == 1
    assert enhancement.best_alpha(table) == 1.0
    worse = table.assign(after=table["after"] & ~((table["alpha"] == 1.0) & table["before"]))
    assert enhancement.best_alpha(worse, "repaired") == 1.0 and enhancement.best_alpha(worse, "net") == 2.0


# --- enhance ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["reference", "qwen2-vl", "gemma-3", "smolvlm"])
def vlm(request):
    return tiny(request.param)


def prepared(vlm):
    rng = np.random.default_rng(2)
    side = vlm.grid.canvas
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(2)]
    width = vlm.language.config.hidden_size
    return pictures, torch.randn(2, width, generator=torch.Generator().manual_seed(0))


def generate(vlm, pictures):
    """Scores of two generated tokens, with plain transformers; the end token, which is forbidden here, scores 0."""
    batch = oracle.inputs(vlm, pictures, [QUESTION] * len(pictures))
    out = vlm.model.generate(
        **batch, max_new_tokens=2, min_new_tokens=2, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    return torch.stack(out.scores).nan_to_num(neginf=0.0)


def test_enhance_wraps_generate_and_leaves_no_trace(vlm):
    pictures, w = prepared(vlm)
    plain = generate(vlm, pictures)  # with the first run transformers installs hooks of its own
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules()]
    with enhancement.enhance(vlm, w, 0.0):
        assert torch.equal(generate(vlm, pictures), plain)  # bit for bit
    with enhancement.enhance(vlm, w, 4.0):
        changed = generate(vlm, pictures)
    assert (changed[0] - plain[0]).abs().max() > 1e-3
    with pytest.raises(KeyboardInterrupt), enhancement.enhance(vlm, w, 4.0):
        raise KeyboardInterrupt
    assert torch.equal(generate(vlm, pictures), plain)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules()]
    images = amplify(vlm.encode(pictures), w, 4.0)
    last = vlm.forward(vlm.tokens([QUESTION] * 2), images).last
    assert ((vlm.logits(last) - changed[0]) * (changed[0] != 0)).abs().max() < 1e-4


def test_directions_of_another_width_are_refused(vlm):
    with pytest.raises(UserError, match="shape .direction"), enhancement.enhance(vlm, torch.ones(1, 7), 1.0):
        pass


# --- real photographs -------------------------------------------------------------------------------------------


def run_everything(vlm, items):
    asked = enhancement.item_run(vlm, items)
    directions = enhancement.order_directions(enhancement.correct_items(asked))
    changes = {"order": enhancement.change(asked, directions)}
    changes["objects"] = enhancement.change(asked, directions, where=enhancement.object_mask(asked))
    table = enhancement.sweep(asked, changes, [1.0, 4.0])
    assert len(table) == 4 * len(items) and enhancement.score(table)["n"].eq(len(items)).all()
    twice = pd.concat([table, table], ignore_index=True)  # as random sets are: more rows, not more items
    assert enhancement.score(twice)["n"].eq(len(items)).all()
    return asked, table


@needs_coco
def test_coco_items_work_alike():
    folder = SAMPLES / "coco_sample"
    loaded = photographs.coco_spatial(
        folder / "COCO_QA_two_obj.json", folder, folder / "annotations" / "instances_val2017.json"
    )
    vlm = tiny("reference")
    asked, _ = run_everything(vlm, loaded.items)
    assert len(asked.run) == 2 * len(loaded.items)
    scored, learned = enhancement.split_halves(loaded.items)
    assert len(scored) + len(learned) == len(loaded.items) and scored and learned
    assert not {item.key for item in scored} & {item.key for item in learned}
    item = loaded.items[0]
    assert box_tokens(item.subject_box, vlm.grid, item.size).tolist() in [
        end.tolist() for end in enhancement.end_tokens(item, vlm.grid)
    ]


@needs_whatsup
def test_composites_work_alike():
    """The tiny model has no words for the objects: it is asked for colours."""
    items = [
        replace(i, candidates=("red", "blue", "green")) for i in photographs.whatsup(SAMPLES / "whatsup_sample")[:8]
    ]
    asked, table = run_everything(tiny("reference"), items)
    assert len(asked.run) == 8 and len(np.unique(asked.scene)) == 4
    first, last = enhancement.end_tokens(items[0], asked.vlm.grid)
    assert (first % 6).max() < (last % 6).min()  # the outer strips


# --- items made ready -------------------------------------------------------------------------------------------


def test_asked_rows_keep_items_and_questions_together():
    vlm = tiny("reference")
    items = questions.questions("squares", vlm.grid)[:6]
    asked = enhancement.item_run(vlm, items)
    part = asked.rows([4, 1])
    assert [part.items[k] for k in part.item_of] == [items[4], items[1]]
    assert torch.equal(part.run.images[part.picture], asked.run.images[asked.picture[[4, 1]]])
    seen = tokens_at(vlm, part.run, [0])[0]
    assert torch.equal(seen[part.picture], part.run.images[part.picture])
    assert seen[np.setdiff1d(asked.picture, part.picture)].isnan().all()  # nobody asks about these
    with pytest.raises(UserError, match="no item is left"):
        asked.rows(np.zeros(6, dtype=bool))


def test_one_axis_of_every_picture():
    grid = tiny("reference").grid
    many = questions.natural_questions(grid, scenes.HELD_OUT_PHOTOGRAPHS, n=120, seed=3, per_scene=20)
    items = enhancement.one_axis_each(many, most=3)
    table = pd.DataFrame({"key": [i.key for i in items], "axis": [i.orientation for i in items]})
    assert table.groupby("key")["axis"].nunique().max() == 1 and table.groupby("key").size().max() == 3
    assert set(table["axis"]) == set(grids.ORIENTATIONS) and set(items) < set(many)


def test_tables_for_figures():
    table = results([(k, k, 1.0, k % 2, 1) for k in range(4)]).assign(p_before=0.3)
    none = enhancement.score(enhancement.unenhanced(table)).iloc[0]
    assert (none["condition"], none["alpha"], none["net"]) == ("none", 0.0, 0.0)
    assert none["strict_accuracy"] == none["paper_accuracy"] == 0.5
    tall = enhancement.long_form(enhancement.score(table), ["strict_accuracy", "net"])
    assert tall["measure"].tolist() == ["strict_accuracy", "net"] and tall["value"].tolist() == [1.0, 0.5]
    assert (tall["low"] <= tall["value"]).all() and (tall["value"] <= tall["high"]).all()


def test_beyond_random_is_a_difference_on_the_same_failures():
    """Ten failures: the exact directions repair six, two random sets two and four of the same ones."""
    rows = []
    for condition, repaired in (("exact", 6), ("random 00", 2), ("random 01", 4)):
        for alpha in (1.0, 4.0):  # at alpha 1 nothing is repaired: each takes its best alpha
            for item in range(10):
                after = alpha == 4.0 and item < repaired
                rows.append({"condition": condition, "alpha": alpha, "item": item, "scene": item, "axis": "horizontal",
                             "before": False, "after": after, "p_before": 0.1, "p_after": 0.5})  # fmt: skip
    found = enhancement.beyond_random(pd.DataFrame(rows), "exact")
    assert found.value == pytest.approx(0.6 - 0.3) and found.n == 10


def test_questions_that_are_not_about_space_are_left_alone_at_alpha_zero(reference):
    directions = {axis: torch.randn(2, reference.language.config.hidden_size) for axis in ("horizontal", "vertical")}
    asked = [fact for name in ("squares", "objects") for fact in facts.fact_items(name, reference.grid, 4)]
    still = enhancement.unrelated(reference, asked, directions, 0.0)
    assert list(still.columns) == ["scene", "form", "before", "after"] and (still["before"] == still["after"]).all()
    assert len(still) == 8 and still["scene"].nunique() == len({fact.scene for fact in asked})
