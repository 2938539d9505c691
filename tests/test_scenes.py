"""Scenes and token sets: the exact geometry of every family, pixels and tokens that agree, a user's own
pictures."""

import hashlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib import places
from lib.errors import UserError
from lib.stimuli import object_pictures, scenes, token_sets
from lib.stimuli.grids import GRIDS, ORIENTATIONS
from lib.stimuli.scenes import Entity, Placement, Scene

grids = st.sampled_from(list(GRIDS.values()))
orientations = st.sampled_from(ORIENTATIONS)
places_of_a_line = st.integers(0, 2)
quick = settings(max_examples=25, deadline=None)


def inked(scene: Scene) -> np.ndarray:
    """Where the picture of a scene is not white: bool [canvas, canvas]."""
    return (np.asarray(scenes.render(scene)) != 255).any(-1)


def tokens_with(mask: np.ndarray, grid, least: int = 1) -> np.ndarray:
    """Tokens with at least so many marked pixels."""
    n, p = grid.side, grid.pixels
    return np.flatnonzero(mask.reshape(n, p, n, p).sum((1, 3)).ravel() >= least)


# --- geometry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "canvas", "starts", "across"),
    [
        ("reference", 168, (1, 5, 9), 5),
        ("qwen2-vl", 336, (1, 5, 9), 5),
        ("gemma-3", 896, (0, 6, 12), 6),
        ("pixtral", 240, (2, 6, 10), 6),
    ],
)
def test_geometry_of_the_families(name, canvas, starts, across):
    grid = GRIDS[name]
    assert (grid.canvas, grid.starts, grid.across) == (canvas, starts, across)
    assert sum(grid.strips) == grid.side and grid.strips[0] == grid.strips[2]
    for place in range(3):
        assert set(range(starts[place], starts[place] + grid.entity)) <= set(grid.strip_range(place))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda g: g.name)
def test_entities_and_triples(grid):
    assert [len(scenes.entities(s, grid)) for s in ("squares", "shapes", "objects")] == [6, 6, 8]
    assert [len(scenes.ordered_triples(s, grid)) for s in ("squares", "shapes", "objects")] == [120, 120, 336]
    assert ("orange" in scenes.palette(grid)) == (grid.name == "pixtral") != ("brown" in scenes.palette(grid))


def test_scene_errors_are_one_sentence():
    grid = GRIDS["reference"]
    triple = scenes.entities("squares", grid)[:3]
    with pytest.raises(UserError, match="Unknown setting 'circles': choose"):
        scenes.entities("circles", grid)
    with pytest.raises(UserError, match="pushes an entity off"):
        scenes.line_scene(triple, grid, "horizontal", (0, 3))
    with pytest.raises(UserError, match="did you mean 'vertical'"):
        scenes.line_scene(triple, grid, "verticle")
    with pytest.raises(UserError, match="No photograph 'moon'"):
        scenes.render(Scene(grid.canvas, (), scenes.Backdrop("moon")))
    for thing, sentence in (
        (Entity("aple"), "unknown object 'aple': did you mean 'apple'"),
        (Entity("square", "grey"), "unknown colour 'grey': did you mean 'gray'"),
        (Entity("sqare", "red"), "unknown shape 'sqare': did you mean 'square'"),
    ):
        with pytest.raises(UserError, match=sentence):
            scenes.render(Scene(grid.canvas, (Placement(thing, (0, 0, 28, 28)),)))


# --- token sets ---------------------------------------------------------------------------------------------


@quick
@given(grids, orientations)
def test_strips_partition_the_grid_and_hold_their_objects(grid, orientation):
    strips = [token_sets.strip_tokens(grid, orientation, place) for place in range(3)]
    assert np.array_equal(np.sort(np.concatenate(strips)), np.arange(grid.side**2))
    parts = [token_sets.background(grid, orientation)]
    for place, strip in enumerate(strips):
        thing, rest = (f(grid, orientation, place) for f in (token_sets.object_tokens, token_sets.background_strip))
        assert len(thing) == grid.entity**2 and np.array_equal(np.union1d(thing, rest), strip)
        assert len(thing) + len(rest) == len(strip) and np.isin(rest, parts[0]).all()
        parts.append(thing)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(grid.side**2))


@quick
@given(grids, orientations, st.data())
def test_narrow_strips_are_nested_bands_around_the_object(grid, orientation, data):
    place = data.draw(places_of_a_line)
    widths = range(grid.entity, grid.strips[place] + 1)
    strips = [set(token_sets.strip_tokens(grid, orientation, place, w)) for w in widths]
    assert [len(s) for s in strips] == [w * grid.side for w in widths]
    assert set(token_sets.object_tokens(grid, orientation, place)) <= strips[0]
    assert all(a < b for a, b in zip(strips, strips[1:], strict=False))
    assert strips[-1] == set(token_sets.strip_tokens(grid, orientation, place))
    for wrong in (grid.entity - 1, grid.strips[place] + 1):
        with pytest.raises(UserError, match="is not possible"):
            token_sets.strip_tokens(grid, orientation, place, wrong)


def flip(grid, orientation, tokens):
    """The tokens on the other side of the canvas along the axis, sorted."""
    row, column = np.divmod(tokens, grid.side)
    last = grid.side - 1
    row, column = (row, last - column) if orientation == "horizontal" else (last - row, column)
    return np.sort(row * grid.side + column)


@quick
@given(grids, orientations, st.data())
def test_sets_are_sorted_int64_and_mirror(grid, orientation, data):
    place = data.draw(places_of_a_line)
    width = data.draw(st.none() | st.integers(grid.entity, grid.strips[place]))
    symmetric = grid.name in ("reference", "qwen2-vl")  # elsewhere (N - 3S - 2g) is odd, and nothing can be
    for make in (token_sets.object_tokens, token_sets.strip_tokens, token_sets.background_strip):
        more = () if make is token_sets.object_tokens else (width,)
        tokens, other = make(grid, orientation, place, *more), make(grid, orientation, 2 - place, *more)
        assert tokens.dtype == np.int64 and (np.diff(tokens) > 0).all() and len(tokens) == len(other)
        if symmetric and place != 1:
            assert np.array_equal(flip(grid, orientation, tokens), other)
    full = token_sets.strip_tokens(grid, orientation, place)
    assert np.array_equal(flip(grid, orientation, full), token_sets.strip_tokens(grid, orientation, 2 - place))
    turned = token_sets.strip_tokens(grid, "vertical" if orientation == "horizontal" else "horizontal", place)
    assert np.array_equal(np.sort(turned % grid.side * grid.side + turned // grid.side), full)


@quick
@given(grids, orientations, st.integers(0, 2**32))
def test_interchange_regions_are_aligned(grid, orientation, seed):
    n = grid.entity**2
    for region in token_sets.REGIONS:
        width = grid.entity + 1
        first, last = token_sets.interchange_regions(grid, orientation, region, width, np.random.default_rng(seed))
        assert len(first) == len(last) == len(np.unique(first)) == len(np.unique(last))
        if region == "middle":
            assert np.array_equal(first, last)
            continue
        assert not np.isin(first, last).any()
        if region in ("object", "strip"):  # object on object, in the same order
            step = token_sets.object_tokens(grid, orientation, 2)[0] - token_sets.object_tokens(grid, orientation, 0)[0]
            assert (last[:n] - first[:n] == step).all()
            assert np.array_equal(first[:n], token_sets.object_tokens(grid, orientation, 0))
        if region == "strip":
            for place, tokens in ((0, first), (2, last)):
                assert np.array_equal(np.sort(tokens), token_sets.strip_tokens(grid, orientation, place, width))
                assert (np.diff(tokens[n:]) > 0).all()
        if region == "random":
            background = token_sets.background(grid, orientation)
            assert np.isin(np.concatenate([first, last]), background).all()
            assert len(first) == len(token_sets.background_strip(grid, orientation, 0, width))


def test_random_tokens_need_a_generator_and_follow_it():
    grid = GRIDS["reference"]

    def draw(seed):
        return token_sets.random_background(grid, "vertical", 40, np.random.default_rng(seed))

    assert np.array_equal(draw(1), draw(1)) and not np.array_equal(draw(1), draw(2))
    assert (np.diff(draw(1)) > 0).all()
    with pytest.raises(UserError, match="needs a generator"):
        token_sets.interchange_regions(grid, "vertical", "random")
    with pytest.raises(UserError, match="the reference grid has 132"):
        token_sets.random_background(grid, "vertical", 133, np.random.default_rng(0))
    with pytest.raises(UserError, match="did you mean 'strip'"):
        token_sets.interchange_regions(grid, "vertical", "stripe")


@quick
@given(grids, orientations, st.sampled_from(["squares", "shapes", "objects"]), st.data())
def test_tokens_agree_with_pixels(grid, orientation, setting, data):
    things = data.draw(st.permutations(scenes.entities(setting, grid)))
    room = grid.starts[0] if grid.starts[0] < 2 else 2
    shift = data.draw(st.tuples(*[st.integers(-room, room)] * 2))
    triple = tuple(things[:3])
    scene = scenes.line_scene(triple, grid, orientation, shift)
    sets = [token_sets.object_tokens(grid, orientation, place, shift) for place in range(3)]
    found = tokens_with(inked(scene), grid)
    assert np.isin(found, np.concatenate(sets)).all()
    if setting == "squares":  # a square fills its tokens to the last pixel
        assert np.array_equal(np.sort(np.concatenate(sets)), tokens_with(inked(scene), grid, grid.pixels**2))
    for placement, tokens in zip(scene.placements, sets, strict=True):
        assert np.array_equal(token_sets.box_tokens(placement.box, grid), tokens) and np.isin(found, tokens).any()
    outside = np.isin(np.arange(grid.side**2), token_sets.background(grid, orientation, shift))
    assert not inked(scene).reshape(grid.side, grid.pixels, grid.side, grid.pixels).any((1, 3)).ravel()[outside].any()


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda g: g.name)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_references_of_the_ablation(grid, orientation):
    thing = scenes.entities("squares", grid)[0]
    alone = scenes.line_scene((None, thing, None), grid, orientation)
    middle = token_sets.object_tokens(grid, orientation, 1)
    assert np.array_equal(tokens_with(inked(alone), grid, grid.pixels**2), middle)
    assert not inked(scenes.line_scene((None, None, None), grid, orientation)).any()


# --- boxes --------------------------------------------------------------------------------------------------


@quick
@given(grids, st.data())
def test_box_tokens_follow_the_rule(grid, data):
    size = data.draw(st.tuples(st.integers(60, 800), st.integers(60, 800)))
    x, y = ([data.draw(st.floats(0, edge - 2)) for _ in range(2)] for edge in size)
    box = (min(x), min(y), max(x) + 1.5, max(y) + 1.5)
    tokens = token_sets.box_tokens(box, grid, size)
    column, row = (min(int((box[k] + box[k + 2]) / 2 * grid.side / size[k]), grid.side - 1) for k in (0, 1))
    assert row * grid.side + column in tokens and (np.diff(tokens) > 0).all()
    for token in data.draw(st.lists(st.integers(0, grid.side**2 - 1), max_size=20)):
        r, c = divmod(token, grid.side)
        wide = min((c + 1) / grid.side, box[2] / size[0]) - max(c / grid.side, box[0] / size[0])
        high = min((r + 1) / grid.side, box[3] / size[1]) - max(r / grid.side, box[1] / size[1])
        part = max(wide, 0) * max(high, 0) * grid.side**2
        if abs(part - 0.5) > 1e-6 and (r, c) != (row, column):
            assert (token in tokens) == (part > 0.5)


def test_box_tokens_by_hand():
    grid = GRIDS["reference"]  # 12 x 12 tokens of 14 pixels
    assert token_sets.box_tokens((14, 28, 42, 42), grid).tolist() == [25, 26]
    assert token_sets.box_tokens((7, 0, 14, 14), grid).tolist() == [0]  # exactly half
    assert token_sets.box_tokens((8, 0, 20, 14), grid).tolist() == [1]  # .43 and .43: only the centre's
    assert token_sets.box_tokens((80, 80, 82, 82), grid).tolist() == [5 * 12 + 5]  # tiny
    assert token_sets.box_tokens((0, 0, 640, 40), grid, (640, 480)).tolist() == list(range(12))
    assert token_sets.box_tokens((160, 160, 168, 168), grid)[-1] == 143


# --- naturalistic scenes ------------------------------------------------------------------------------------


def test_natural_scenes_are_as_documented():
    rng = np.random.default_rng(5)
    drawn = [scenes.natural_scene(rng, 168, scenes.HELD_OUT_PHOTOGRAPHS) for _ in range(200)]
    sides = [p.box[2] - p.box[0] for s in drawn for p in s.placements]
    assert 0.11 * 168 <= min(sides) < 0.13 * 168 and 0.31 * 168 < max(sides) <= 0.33 * 168
    assert {len(s.placements) for s in drawn} == {2, 3, 4, 5}
    assert {s.backdrop.photograph for s in drawn} == set(scenes.HELD_OUT_PHOTOGRAPHS)
    overlaps = [scenes.overlap(a.box, b.box) for s in drawn for a, b in combinations(s.placements, 2)]
    assert max(overlaps) < 0.25 and sum(o > 0 for o in overlaps) > 20
    for scene in drawn:
        assert len({p.entity for p in scene.placements}) == len(scene.placements)
        assert all(0 <= min(p.box) and max(p.box) <= 168 for p in scene.placements)
    first, second = (scenes.render(drawn[0]) for _ in range(2))
    assert first.tobytes() == second.tobytes() and first.size == (168, 168) and first.mode == "RGB"


def test_boxes_of_natural_scenes_are_where_the_pixels_are():
    rng = np.random.default_rng(6)
    for _ in range(10):
        scene = scenes.natural_scene(rng, 336, scenes.HELD_OUT_PHOTOGRAPHS)
        for placement in scene.placements:
            x0, y0, x1, y1 = (round(v) for v in placement.box)
            mask = inked(Scene(336, (placement,)))
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0.15 * (x1 - x0) * (y1 - y0)


def test_a_picture_on_another_canvas():
    scene = scenes.natural_scene(np.random.default_rng(1), 168, scenes.PHOTOGRAPHS)
    assert scene.image(168).tobytes() == scenes.render(scene).tobytes()
    big = scene.image(336)
    assert big.size == (336, 336)
    assert scenes.resized(scene, 336).placements[0].box == tuple(2 * v for v in scene.placements[0].box)


@pytest.mark.parametrize("name", scenes.PHOTOGRAPHS)
def test_photographs_are_in_the_wheel(name):
    picture = np.asarray(scenes.render(Scene(112, (), scenes.Backdrop(name, 0.3, 0.7, 0.8, True))))
    assert picture.shape == (112, 112, 3) and picture.std() > 10


def test_a_backdrop_is_behind_and_does_not_move_the_entities():
    grid = GRIDS["reference"]
    triple = scenes.entities("squares", grid)[:3]
    plain, backed = (
        np.asarray(scenes.render(scenes.line_scene(triple, grid, "vertical", backdrop=b)))
        for b in (None, scenes.Backdrop("coffee"))
    )
    mask = inked(scenes.line_scene(triple, grid, "vertical"))
    assert (plain[mask] == backed[mask]).all() and (plain[~mask] != backed[~mask]).any(-1).mean() > 0.99


def test_lattices():
    grid = GRIDS["reference"]
    a, b, c, d = scenes.entities("squares", grid)[:4]
    scene = scenes.lattice_scene(((a, b), (c, d)), grid)
    assert [p.box[:2] for p in scene.placements] == [(42, 42), (98, 42), (42, 98), (98, 98)]
    table = ((a, None, b), (None, c, None), (d, None, None))
    placed = scenes.lattice_scene(table, grid).placements
    assert [(p.entity, p.box[0] // 14, p.box[1] // 14) for p in placed] == [
        (a, 1, 1),
        (b, 9, 1),
        (c, 5, 5),
        (d, 1, 9),
    ]


# --- a user's own pictures ----------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """Six pictures under new names; one is oblong, one has a palette with a transparent colour."""
    stored = {name: Image.open(places.OBJECTS / f"{name}.png").resize((64, 64)) for name in object_pictures.NAMES}
    for old, new in zip(stored, ("cup", "ball", "shoe", "tree", "bird", "lamp"), strict=False):
        stored[old].save(tmp_path / f"{new}.png")
    stored["key"].crop((0, 16, 64, 48)).save(tmp_path / "lamp.png")
    stored["pot"].quantize(32).save(tmp_path / "cup.png")
    return tmp_path


def test_objects_of_a_folder_replace_the_eight(own):
    grid = GRIDS["reference"]
    things = scenes.entities("objects", grid, own)
    assert [t.name for t in things] == ["ball", "bird", "cup", "lamp", "shoe", "tree"]
    assert len(scenes.ordered_triples("objects", grid, own)) == 120
    scene = scenes.line_scene(things[:3], grid, "horizontal")
    assert set(tokens_with(inked(scene), grid)) <= {
        t for place in range(3) for t in token_sets.object_tokens(grid, "horizontal", place)
    }
    ball = scenes.render(Scene(112, (Placement(things[0], (0, 0, 112, 112)),)))
    apple = scenes.render(Scene(112, (Placement(Entity("apple"), (0, 0, 112, 112)),)))
    assert np.abs(np.asarray(ball, int) - np.asarray(apple, int)).mean() < 8  # the same drawing, at 64 px
    lamp = inked(Scene(112, (Placement(things[3], (0, 0, 112, 112)),)))
    assert not lamp[:20].any() and not lamp[-20:].any() and lamp[40:72].any()  # proportions are kept
    drawn = scenes.natural_scene(np.random.default_rng(0), 168, ("coins",), things)
    assert {p.entity for p in drawn.placements} <= set(things)


def test_bad_folders_and_pictures_get_one_sentence(own):
    def message(folder=own) -> str:
        with pytest.raises(UserError) as caught:
            scenes.objects_in_folder(folder)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
        return str(caught.value)

    good = (own / "tree.png").read_bytes()
    assert "No folder" in message(own / "nowhere")
    (own / "tree.png").write_bytes(good[: len(good) // 2])
    assert "tree.png is not a readable picture" in message()
    (own / "tree.png").write_bytes(b"")
    object_pictures.load.cache_clear()
    assert "tree.png is not a readable picture" in message()
    Image.new("RGB", (64, 64)).save(own / "tree.png")
    object_pictures.load.cache_clear()
    assert "tree.png has no transparent background" in message()
    for name in ("tree", "shoe"):
        (own / f"{name}.png").unlink()
    assert "holds 4 PNG pictures: at least 5" in message()
    with pytest.raises(UserError, match="There is no picture .*tree.png"):
        scenes.render(Scene(28, (Placement(Entity("tree", folder=str(own)), (0, 0, 28, 28)),)))


# --- what trained models rest on ----------------------------------------------------------------------------


def test_scenes_the_models_were_trained_on_stay_what_they_are():
    rng = np.random.default_rng(7)
    drawn = [scenes.natural_scene(rng, 168, scenes.TRAINING_PHOTOGRAPHS) for _ in range(20)]
    text = str([(str(p.entity), [round(v, 3) for v in p.box], round(p.turn, 3)) for s in drawn for p in s.placements])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f8213afa15871106"
