"""The reference models: language, curriculum, masks, optimiser, resumable training, and the shipped files."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from lib import places
from lib.engine.checkpoints import shipped
from lib.errors import UserError
from lib.reference import curriculum, language, models, train
from lib.reference.language import GRID
from lib.reference.muon import orthogonalised
from lib.stimuli import questions, scenes

TINY = models.Size(width=32, heads=2, encoder=1, backbone=2, feed=32)
SHIPPED = list(shipped())


# --- language --------------------------------------------------------------------------------------------------------


def test_every_candidate_is_one_token_in_every_spelling():
    tokenizer = language.build_tokenizer()
    for word in (*curriculum.COLOURS, *scenes.OBJECT_NAMES, *questions.DIRECTIONS):
        ids = {
            tuple(tokenizer(form).input_ids) for form in (word, word.capitalize(), " " + word, " " + word.capitalize())
        }
        assert len(ids) == 1 and len(ids.pop()) == 1


def test_no_text_of_the_curriculum_or_the_questions_has_an_unknown_word():
    tokenizer, rng = language.build_tokenizer(), np.random.default_rng(0)
    texts = [" ".join(text) for k in range(100) for text in curriculum.lesson(rng, k / 100).texts]
    texts += [context for context, _ in (curriculum.text_lesson(rng) for _ in range(100))]
    texts += [item.question for setting in questions.SETTINGS for item in questions.questions(setting, GRID)]
    texts += [questions.whatsup_question("left", reference) for reference in language.FURNITURE]
    assert not any(tokenizer.unk_token_id in tokenizer(text).input_ids for text in texts)


# --- curriculum ------------------------------------------------------------------------------------------------------


def in_line(scene):
    """The entities of a scene of three in a row or column, in order; None for any other scene."""
    if len(scene.placements) != 3:
        return None
    for axis in (0, 1):
        if len({p.centre[1 - axis] for p in scene.placements}) == 1:
            return tuple(p.entity for p in sorted(scene.placements, key=lambda p: p.centre[axis]))
    return None


def test_training_lines_hold_no_held_out_triple_and_never_the_evaluated_place():
    rng = np.random.default_rng(1)
    evaluated = {setting: {item.scene for item in questions.questions(setting, GRID)} for setting in questions.SETTINGS}
    found = 0
    for _ in range(3000):
        kind = str(rng.choice(curriculum.KINDS))
        scene = curriculum.line(rng, kind, (3, 4))
        assert scene not in evaluated[kind]
        ordered = in_line(scene)
        if ordered:
            found += 1
            assert ordered not in questions.held_out_triples(kind, GRID)
    assert found > 1000


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9])
def test_texts_are_true(progress):
    """Neighbours, pairs and places agree with the boxes, checked by another way of saying it."""
    rng = np.random.default_rng(2)
    for _ in range(100):
        scene = curriculum.lesson(rng, progress).scene
        for a in scene.placements:
            row, column = curriculum.token_place(a)
            x0, y0, _, _ = a.box
            assert abs(column * GRID.pixels - x0) <= GRID.pixels / 2 + 1e-6 or column == GRID.side - 1
            assert abs(row * GRID.pixels - y0) <= GRID.pixels / 2 + 1e-6 or row == GRID.side - 1
            for direction in questions.DIRECTIONS:
                b = curriculum.neighbour(direction, a, scene.placements)
                if b is not None:
                    assert direction in curriculum.signs(b, a)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_blocks_see_the_context_and_their_own_past_only():
    blocks = torch.tensor([[0, 0, 1, 1, 1, -1]])
    positions, mask = models.layout(3, 1, blocks, blind=False)
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 3]
    seen = mask[0, 0] == 0
    assert seen[4].tolist() == [True] * 3 + [True, True, False, False, False, False]
    assert seen[6].tolist() == [True] * 3 + [False, False, True, True, False, False]
    assert seen[1].tolist() == [True, True] + [False] * 7


def test_a_blind_backbone_cannot_tell_permuted_image_tokens_apart():
    model = models.build(TINY, 0, "backbone").eval()
    batch = train.Batch(torch.zeros(1), *train.pack([(("red :", "square"),)]))
    context = torch.randn(1, GRID.side**2, TINY.width)
    shuffled = context[:, torch.randperm(GRID.side**2)]
    with torch.no_grad():
        a, b = (train.backbone_hidden(model, each, batch, True, False) for each in (context, shuffled))
        c, d = (train.backbone_hidden(model, each, batch, False, False) for each in (context, shuffled))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(c, d, atol=1e-3)


def test_a_blind_encoder_gives_a_patch_the_same_token_wherever_it_is():
    model = models.build(TINY, 0, "encoder").eval()
    pixels = torch.zeros(1, 3, GRID.canvas, GRID.canvas)
    pixels[..., : GRID.pixels, : GRID.pixels] = pixels[..., -GRID.pixels :, -GRID.pixels :] = torch.randn(GRID.pixels)
    with torch.no_grad():
        tokens = models.image_embeddings(model, pixels)[0]
    torch.testing.assert_close(tokens[0], tokens[-1])
    torch.testing.assert_close(tokens[1], tokens[-2])
    assert not torch.allclose(tokens[0], tokens[1])


def test_waves_tell_rows_from_columns_and_near_from_far():
    """Of the table that position embeddings may start from: halves, norms, and that the next row is the nearest."""
    side, width = 6, 32
    table = models.place_waves(side, width).reshape(side, side, width)
    rows, columns = table[..., : width // 2], table[..., width // 2 :]
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    torch.testing.assert_close(columns, columns[:1].expand_as(columns))
    torch.testing.assert_close(table.norm(dim=-1).mean(), torch.tensor(models.NORM))
    torch.testing.assert_close(table.mean((0, 1)), torch.zeros(width), atol=1e-5, rtol=0)
    apart = torch.cdist(rows[:, 0], rows[:, 0])
    assert all(apart[k, k + 1] < apart[k, k + 2 :].min() for k in range(side - 2))
    built = models.build(TINY, 0, places="waves").model.vision_tower.embeddings.position_embedding.weight
    torch.testing.assert_close(built.detach(), models.place_waves(GRID.side, TINY.width))
    with pytest.raises(UserError, match="did you mean 'waves'"):
        models.build(TINY, 0, places="wave")


# --- optimiser and loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 24), (12, 30), (30, 12)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))))
    assert 0.3 < values.median() < 1.3 and values.max() < 1.5


def stage(**options):
    return train.Stage("tiny", "questions", 6, train.ALL, batch=2, **options)


def run(folder, steps_first=None):
    """Train the tiny stage, stopping after steps_first steps and going on, or in one go."""
    model, captioner = models.build(TINY, 0), models.Captioner(TINY)
    return train.run_stage(stage(), 0, model, captioner, 0, folder, stop_after=steps_first), model


def test_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    _, whole = run(tmp_path / "whole")
    run(tmp_path / "parts", steps_first=3)
    _, parts = run(tmp_path / "parts")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


FUSED = """
import numpy as np, torch
from lib.reference import models, train
size, found = models.Size(width=32, heads=2, encoder=1, backbone=2, feed=32), []
stage = train.Stage("tiny", "questions", 6, train.ALL, batch=2)
for fused in (False, True):
    model, captioner = models.build(size, 0), models.Captioner(size)
    if fused:
        train.fuse(model, captioner)
    batch = train.picture_batch(np.random.default_rng(0), stage, 0.0)
    loss = train.loss_of(stage, model, captioner, batch)
    loss.backward()
    found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
for plain, compiled in zip(*found, strict=True):
    torch.testing.assert_close(plain, compiled, atol=1e-4, rtol=1e-3)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_fused_layers_take_the_same_step():
    """Loss and gradients of one batch, layers compiled or not; in a process of its own, as pytest's plugins import
    parts of distutils that torch.compile wants to import itself."""
    done = subprocess.run([sys.executable, "-c", FUSED], cwd=places.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


# --- the shipped models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_is_whole_small_and_carries_its_card(name):
    folder = places.MODELS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10 * 2**20
    table = pd.read_csv(folder / "accuracy.csv")
    assert {"setting", "direction", "split", "n", "accuracy", "low", "high"} <= set(table)
    assert "## Limits" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "vision_only"])
def test_the_script_of_the_card_answers_red_without_this_library(name, tmp_path):
    """The card's own script, run in another process in which `lib` cannot be imported."""
    import re

    script = re.search(r"```python\n(.*?)```", (places.MODELS / name / "README.md").read_text(), re.S)[1]
    assert "lib" not in script.replace("library", "")
    script = script.replace(f"data/models/{name}", str(places.MODELS / name))
    out = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert out.stdout.strip().endswith("red"), out.stderr[-2000:]
