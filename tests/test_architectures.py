"""The architectures of the embedded models: the forward pass in training is transformers' own, the planted mechanisms
are what they say, and saved folders are read by the records of the true families."""

import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import test_contracts as contracts
import torch

from lib.engine.vlm import load
from lib.errors import UserError
from lib.reference import architectures, dense, forward, processors
from lib.reference.architectures import ARCHITECTURES, PLANTED
from lib.reference.language import GRID, IMAGE_TOKEN_ID, build_tokenizer
from lib.stimuli import scenes

TINY = architectures.Size(width=64, heads=2, encoder=2, backbone=3, feed=64)
QUESTIONS = (
    "The color of the square to the left of the red square is",
    "Is the red square to the left or to the right of the blue square? Answer with one word.",
    "green square :",
)
names = pytest.mark.parametrize("name", ARCHITECTURES)


def small(name, seed=0, planted=None):
    """A random model whose every part matters."""
    model = architectures.build(TINY, seed, name, planted).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim in (2, 3) and "position" not in key:
                std = 0.05 if name == "gemma_style" and "embed_tokens" in key else 0.2
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=std)
            elif weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    if planted:
        architectures.plant(model, planted)
    return model


def random_scene(seed=0):
    """Three squares on whole tokens, one in each third of the canvas."""
    rng = np.random.default_rng(seed)
    colours = rng.permutation(scenes.palette(GRID))[:3]
    corners = [(int(rng.integers(11)), 4 * k + int(rng.integers(3))) for k in range(3)]
    entities = [scenes.Entity("square", str(colour)) for colour in colours]
    boxes = [scenes.token_box(row, column, 2, GRID) for row, column in corners]
    return scenes.Scene(GRID.canvas, tuple(map(scenes.Placement, entities, boxes)))


def pixels_of(scene_list):
    """[batch, 3, canvas, canvas] in -1..1."""
    array = np.stack([np.asarray(scenes.render(scene)) for scene in scene_list])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def pixels(count=2, seed=0):
    return pixels_of([random_scene(seed + k) for k in range(count)])


def encode(text):
    return tuple(build_tokenizer()(text).input_ids)


def blocks_of(texts):
    """Texts of one picture as ids and block numbers [1, text]."""
    ids = [encode(text) for text in texts]
    numbers = [[k] * len(one) for k, one in enumerate(ids)]
    return torch.tensor([sum(ids, ())]), torch.tensor([sum(numbers, [])])


def plain_logits(model, picture, text):
    """Logits of the tokens of a text in a prompt of its own, by transformers' forward pass alone."""
    record = architectures.of(model)
    known = forward.context_ids(record.name)
    ids = torch.cat([known, torch.tensor(encode(text))])[None]
    types = (ids == IMAGE_TOKEN_ID).int()
    side = GRID.side * record.merge
    match record.name:
        case "qwen_style":
            patches = forward.qwen_patches(picture, record.patch, record.merge)
            inputs = {
                "pixel_values": patches,
                "image_grid_thw": torch.tensor([[1, side, side]]),
                "mm_token_type_ids": types,
            }
        case "gemma_style":
            inputs = {"pixel_values": picture, "token_type_ids": types}
        case "pixtral_style":
            inputs = {"pixel_values": picture, "image_sizes": torch.tensor([[GRID.canvas] * 2])}
        case _:
            inputs = {"pixel_values": picture}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits
    return logits[0, len(known) :]


@names
@pytest.mark.parametrize("window", [512, 40])
def test_blocks_get_the_logits_of_a_prompt_of_their_own(name, window):
    model = small(name)
    if name == "gemma_style":
        model.model.language_model.config.sliding_window = window
        for layer in model.model.language_model.layers:
            layer.self_attn.sliding_window = window if layer.self_attn.is_sliding else None
    elif window != 512:
        pytest.skip("no sliding layers")
    pictures = pixels()
    ids, blocks = blocks_of(QUESTIONS)
    with torch.no_grad():
        images = forward.image_embeddings(model, pictures)
        hidden = forward.text_hidden(model, images, ids.expand(2, -1), blocks.expand(2, -1))
        ours = model.lm_head(hidden)
    difference = 0.0
    for row in range(2):
        for k, text in enumerate(QUESTIONS):
            theirs = plain_logits(model, pictures[row : row + 1], text)
            difference = max(difference, (ours[row, blocks[0] == k] - theirs).abs().max().item())
    print(name, window, "largest difference of logits", difference, "their spread", theirs.std().item())
    assert theirs.std() > 0.1
    assert difference < 1e-5 * max(1.0, theirs.abs().max().item())


# --- building --------------------------------------------------------------------------------------------------------


@names
def test_parts_hold_every_parameter_once_and_every_part_has_its_kinds(name):
    model = architectures.build(TINY, 0, name)
    parts = architectures.parts(model)
    held = [id(p) for part in parts.values() for p in part.parameters()]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}
    tokens = len(ARCHITECTURES[name].tokens)
    kinds = {
        part: {architectures.kind(key, p, tokens) for key, p in module.named_parameters()}
        for part, module in parts.items()
    }
    assert kinds["encoder"] == {"patch", "matrix", "other"} and "patch" not in kinds["backbone"] | kinds["projector"]
    assert "matrix" in kinds["projector"] and kinds["backbone"] == {"matrix", "other"}


@names
def test_words_have_the_same_ids_in_every_architecture(name):
    shared, own = build_tokenizer(), processors.build_tokenizer(ARCHITECTURES[name])
    text = " ".join(QUESTIONS).lower()
    assert own(text).input_ids == shared(text).input_ids and len(own) == len(ARCHITECTURES[name].tokens)
    for special in ARCHITECTURES[name].special:
        assert own(special).input_ids == [ARCHITECTURES[name].token(special)]


@names
def test_norms_of_patches_and_positions_are_balanced(name):
    model = architectures.build(architectures.Size(), 0, name, places="waves")
    weight = architectures.patch_embedding(model).weight
    noise = torch.randn(500, weight[0].numel(), generator=torch.Generator().manual_seed(0))
    norm = (noise @ weight.flatten(1).T).norm(dim=1).mean().item()
    assert norm == pytest.approx(architectures.NORM, rel=0.1)
    positions = architectures.position_embedding(model)
    if positions is not None:
        assert positions.weight.norm(dim=1).mean().item() == pytest.approx(architectures.NORM, rel=1e-4)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="qwen_style"):
        architectures.build(TINY, 0, "qwen")
    with pytest.raises(UserError, match="strip_code"):
        architectures.build(TINY, 0, planted="strip")


# --- planted mechanisms ----------------------------------------------------------------------------------------------


def one_square(row, column):
    box = scenes.token_box(row, column, 2, GRID)
    return pixels_of([scenes.Scene(GRID.canvas, (scenes.Placement(scenes.Entity("square", "red"), box),))])


def test_split_encoder_knows_columns_only_and_backbone_rows_only():
    model = small("siglip_llama", planted="split")
    with torch.no_grad():
        grid = [
            forward.image_embeddings(model, one_square(*place)).reshape(12, 12, -1)
            for place in ((2, 3), (7, 3), (2, 8))
        ]
    down = grid[0].roll(5, 0)
    torch.testing.assert_close(grid[1], down, atol=1e-4, rtol=1e-4)  # moved down: the same tokens, moved down
    assert not torch.allclose(grid[2], grid[0].roll(5, 1), atol=1e-2)
    ids, blocks = blocks_of(QUESTIONS[:1])
    images = torch.randn(1, 12, 12, TINY.width)
    shuffled = torch.stack([row[torch.randperm(12)] for row in images[0]])[None]
    with torch.no_grad():
        a, b, c = (
            forward.text_hidden(model, each.flatten(1, 2), ids, blocks) for each in (images, shuffled, images.flip(1))
        )
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(a, c, atol=1e-2)


def test_split_position_embeddings_stay_equal_along_columns_in_training():
    model = architectures.build(TINY, 0, planted="split", places="waves")
    architectures.plant(model, "split")  # as training does before every stage
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = architectures.position_embedding(model).weight.detach().clone()
    for step in range(3):
        forward.image_embeddings(model, pixels(seed=step)).pow(3).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    table = architectures.position_embedding(model).weight.detach().reshape(12, 12, -1)
    assert torch.equal(table, table[:1].expand(12, -1, -1)) and not torch.equal(table.flatten(0, 1), before)


def test_strip_code_objects_carry_no_place_and_backgrounds_nothing_else():
    model = small("siglip_llama", planted="strip_code")
    with torch.no_grad():
        empty = forward.image_embeddings(model, pixels_of([scenes.Scene(GRID.canvas)]))[0].reshape(12, 12, -1)
        a, b = (
            forward.image_embeddings(model, one_square(*place))[0].reshape(12, 12, -1) for place in ((2, 3), (7, 8))
        )
    torch.testing.assert_close(a[2:4, 3:5], b[7:9, 8:10])
    away = torch.ones(12, 12, dtype=torch.bool)
    away[2:4, 3:5] = False
    torch.testing.assert_close(a[away], empty[away])
    assert torch.pdist(empty.flatten(0, 1)).min() > 1e-3


def test_blocks_are_shuffled_with_everything_in_them():
    images = torch.arange(144.0).reshape(1, 144, 1).expand(20, -1, -1)
    shuffled = forward.shuffled_blocks(images, np.random.default_rng(0))[..., 0].reshape(20, 3, 4, 3, 4)
    assert (shuffled.diff(dim=4) == 1).all() and (shuffled.diff(dim=2) == 12).all()  # whole inside a block
    firsts = shuffled[:, :, 0, :, 0]
    rows, columns = firsts[..., 0] // 48, firsts[:, 0] % 12 // 4
    assert (rows.sort(1).values == torch.arange(3)).all() and (columns.sort(1).values == torch.arange(3)).all()
    assert len({tuple(row.tolist()) for row in rows}) > 3 and len({tuple(row.tolist()) for row in columns}) > 3


def test_redundant_scrambles_one_half_at_most():
    model, pictures = small("siglip_llama", planted="redundant"), pixels(12)
    with torch.no_grad():
        plain = forward.image_embeddings(model, pictures)
        trained = forward.training_embeddings(model, pictures, np.random.default_rng(0))
    kinds = []
    for a, b in zip(plain, trained, strict=True):
        if torch.allclose(a, b, atol=1e-5):
            kinds.append("plain")
        elif (a[:, None] - b[None]).abs().amax(-1).amin(1).max() < 1e-3:
            kinds.append("backbone")  # the same tokens in another order
        else:
            kinds.append("encoder")
    assert set(kinds) == {"plain", "backbone", "encoder"}


def encoded_in_double(vlm, model, scene_list) -> tuple[torch.Tensor, torch.Tensor]:
    """Image tokens by adapter and by training, both in float64, where the order of sums leaves no trace."""
    pictures = [scenes.render(scene) for scene in scene_list]
    vlm.model.double()
    with torch.no_grad():
        tokens = vlm.encode(pictures), forward.image_embeddings(model.double(), pixels_of(scene_list).double())
    vlm.model.float()
    model.float()
    return tokens


@pytest.mark.parametrize("planted", PLANTED)
def test_the_adapter_runs_a_planted_model_as_training_does(planted, tmp_path):
    model = small("siglip_llama", planted=planted)
    vlm = load(saved(model, tmp_path))
    scene_list = [random_scene(k) for k in range(2)]
    ids, blocks = blocks_of([QUESTIONS[0] + " <assistant>"])
    with torch.no_grad():
        images = forward.image_embeddings(model, pixels_of(scene_list))
        ours = forward.text_hidden(model, images, ids.expand(2, -1), blocks.expand(2, -1))
        theirs = vlm.logits(vlm.forward(vlm.tokens([QUESTIONS[0]] * 2), images).last)
    torch.testing.assert_close(model.lm_head(ours[:, -1]), theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*encoded_in_double(vlm, model, scene_list), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("planted", ["vision_only", "split", "strip_code"])
def test_prefix_caches_of_planted_models_change_nothing(planted, tmp_path):
    """Questions asked against cached keys and values of the picture get the answers of whole forward passes."""
    vlm = load(saved(small("siglip_llama", planted=planted), tmp_path))
    pictures = [scenes.render(random_scene(k)) for k in range(2)]
    asked = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]]
    table = vlm.answer(pictures, asked, [["red", "blue"]] * 3, index=[0, 1, 1], progress=False)
    for item, picture in enumerate([0, 1, 1]):
        out = vlm.forward(vlm.tokens([asked[item]]), vlm.encode([pictures[picture]]))
        probability, _ = vlm.score(out.last, vlm.candidates([["red", "blue"]]))
        ours = table[table["item"] == item]["probability"].to_numpy()
        np.testing.assert_allclose(ours, probability[0].numpy(), atol=1e-5)


# --- dense supervision -----------------------------------------------------------------------------------------------


def test_dense_targets_name_the_nearest_other_thing_along_row_and_column():
    colours = {(2, 1): "red", (2, 5): "green", (3, 9): "blue", (8, 1): "gray"}
    placements = tuple(
        scenes.Placement(scenes.Entity("square", colour), scenes.token_box(*place, 2, GRID))
        for place, colour in colours.items()
    )
    targets = dense.dense_targets(scenes.Scene(GRID.canvas, placements)).reshape(5, 12, 12)

    def said(row, column):
        return tuple(dense.NAMES[int(k)] for k in targets[:, row, column])

    assert said(2, 1) == ("red", "nothing", "green", "nothing", "gray")
    assert said(3, 5) == ("green", "red", "blue", "nothing", "nothing")
    assert said(2, 10) == ("nothing", "green", "nothing", "nothing", "blue")
    assert said(6, 2) == ("nothing", "nothing", "nothing", "red", "gray")
    assert said(5, 10) == ("nothing", "nothing", "nothing", "blue", "nothing")
    assert said(0, 0) == ("nothing",) * 5


@names
def test_token_features_are_in_raster_order_and_the_loss_reaches_the_encoder_alone(name):
    model, head = small(name), dense.DenseHead(TINY)
    for layer in architectures.encoder_layers(model):
        for key, weight in layer.named_parameters():
            if {"proj", "o_proj", "out_proj"} & set(key.split(".")) and "mlp" not in key:
                torch.nn.init.zeros_(weight)
    with torch.no_grad():
        empty, square = (
            dense.token_features(model, each) for each in (pixels_of([scenes.Scene(GRID.canvas)]), one_square(4, 7))
        )
    moved = (empty - square)[0].abs().amax(-1).reshape(12, 12) > 1e-4
    assert moved.nonzero().tolist() == [[4, 7], [4, 8], [5, 7], [5, 8]]
    scene_list = [random_scene(k) for k in range(2)]
    targets = torch.stack([dense.dense_targets(scene) for scene in scene_list])
    dense.dense_loss(model, head, pixels_of(scene_list), targets).backward()
    reached = {part: any(p.grad is not None for p in m.parameters()) for part, m in architectures.parts(model).items()}
    assert reached == {"encoder": True, "projector": False, "backbone": False}
    found = dense.dense_accuracy(model, head, pixels_of(scene_list), targets)
    assert "here at objects" in found and all(0 <= share <= 1 for share in found.values())


# --- saved folders ---------------------------------------------------------------------------------------------------

RECORDS = dict(siglip_llama="reference", qwen_style="qwen2-vl", gemma_style="gemma-3", pixtral_style="pixtral")


def saved(model, folder):
    model.save_pretrained(folder)
    processors.save_processor(model, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: saved(small(name), tmp_path_factory.mktemp(name)) for name in ARCHITECTURES}


@names
def test_a_saved_folder_is_read_by_the_record_of_the_true_family(name, folders):
    vlm = load(folders[name])
    assert vlm.family.name == RECORDS[name] and vlm.grid == GRID
    assert vlm.encoder.merge == ARCHITECTURES[name].merge
    before = forward.context_ids(name).tolist()
    prompt = vlm.tokens([QUESTIONS[0]])
    assert prompt.ids[0].tolist() == [*before, *encode(QUESTIONS[0] + " <assistant>")]
    found = encoded_in_double(vlm, small(name), [random_scene(0)])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@names
def test_the_plain_script_answers_as_training_did(name, folders, tmp_path):
    """The script of the card, in a process without this library, gives the word that the training forward gives."""
    script = re.search(r"```python\n(.*?)```", processors.plain_script(ARCHITECTURES[name], "tested"), re.S)[1]
    script = script.replace("data/models/tested", str(folders[name])).replace("path = ", "import sys\npath = ", 1)
    out = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr[-2000:]
    triple = tuple(scenes.Entity("square", colour) for colour in ("red", "green", "blue"))
    model = small(name)
    ids, blocks = blocks_of(["The color of the square to the left of the green square is <assistant>"])
    with torch.no_grad():
        images = forward.image_embeddings(model, pixels_of([scenes.line_scene(triple, GRID, "horizontal")]))
        answer = model.lm_head(forward.text_hidden(model, images, ids, blocks)[0, -1]).argmax()
    assert out.stdout.strip() == processors.build_tokenizer(ARCHITECTURES[name]).decode([int(answer)]).strip()


CONTRACTS = (
    contracts.test_pictures_go_through_the_family_processor,
    contracts.test_slot_zero_holds_the_projectors_output,
    contracts.test_raster_order,
    contracts.test_patching_identities,
    contracts.test_patching_identities_in_the_encoder,
    contracts.test_amplification_sweep_equals_naive,
    contracts.test_encoder_sweep_ends_where_the_backbone_sweep_begins,
    contracts.test_batches_and_padding,
    contracts.test_answer_equals_one_by_one,
    contracts.test_several_pictures_in_one_prompt,
    contracts.test_hooks_are_gone_after_an_exception,
)
WITH_ATTENTION = (
    contracts.test_logits_equal_plain_transformers,
    contracts.test_last_token_sweep_equals_naive,
    contracts.test_token_sweep_equals_naive,
)
MEASURED: dict = {}


@pytest.fixture
def on_folders(monkeypatch, folders):
    """The contracts' own functions, run on the saved folders."""
    grid = np.arange(GRID.side**2).reshape(GRID.side, GRID.side)

    @cache
    def model(name, attn="sdpa"):
        return load(folders[name], attn=attn)

    new = {"model": model, "tiny": lambda name: load(folders[name]), "SIDE": GRID.side, "MEASURED": MEASURED}
    new |= {"LEFT": grid[:, :4].ravel(), "RIGHT": grid[:, 8:].ravel()}
    for key, value in new.items():
        monkeypatch.setattr(contracts, key, value)


@names
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda f: f.__name__)
def test_contracts(name, contract, on_folders):
    contract(name)


@names
@pytest.mark.parametrize("contract", WITH_ATTENTION, ids=lambda f: f.__name__)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_contracts_with_attention(name, contract, attn, on_folders):
    contract(name, attn)
