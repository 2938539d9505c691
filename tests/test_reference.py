"""The embedded models: language, optimiser, resumable training, and the shipped files."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import places
from lib.analysis import battery
from lib.engine.checkpoints import shipped
from lib.errors import UserError
from lib.reference import architectures, courses, curriculum, language, train
from lib.reference.captioner import Captioner
from lib.reference.dense import DenseHead
from lib.reference.language import GRID
from lib.reference.muon import orthogonalised
from lib.reference.recipes import RECIPES, Recipe, Stage
from lib.stimuli import questions, scenes

TINY = architectures.Size(width=32, heads=2, encoder=1, backbone=2, feed=32)
SHIPPED = list(shipped())
OWN_ADAPTER = ("vision_only", "split", "strip_code")  # parts of these plain transformers does not run


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


# --- optimiser and loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 24), (12, 30), (30, 12)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))))
    assert 0.3 < values.median() < 1.3 and values.max() < 1.5


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three small courses on disk."""
    folder = tmp_path_factory.mktemp("courses")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("relations", "text", "contested"):
            patch.setitem(courses.COURSES, name, replace(courses.COURSES[name], lessons=40))
        courses.draw(["relations", "text", "contested"], folder, workers=1)
        yield folder


def test_lessons_are_the_same_whoever_draws_them(drawn):
    arrays = courses.Lessons("contested", drawn).arrays
    for k in (0, 39):
        for key, value in courses.drawn("contested", k).items():
            assert np.array_equal(arrays[key][k], value)


def test_a_packed_lesson_scores_continuations_only():
    ids, blocks, labels = courses.pack([("red :", "square"), ("blue :", "star")], length=12)
    assert len(ids) == len(blocks) == len(labels) == 12 and blocks[-1] == -1 and set(blocks) == {0, 1, -1}
    scored = [label for label in labels if label != courses.IGNORED]
    tokenizer = language.build_tokenizer()
    assert tokenizer.decode(scored).split() == ["square", "</s>", "star", "</s>"]


TASKS = {"neighbours": "relations", "captions": "relations", "text": "text", "questions": "contested"}


def run(task, folder, courses_folder, monkeypatch, steps_first=None):
    """Train a tiny stage of six steps, stopping after some and going on, or in one go; the model's weights."""
    monkeypatch.setattr(courses, "FOLDER", courses_folder)
    monkeypatch.setattr(courses.Lessons, "WINDOW", 0.5)
    trained = {"text": ("backbone",), "questions": ("encoder", "projector", "backbone")}.get(task, ("encoder",))
    stage = Stage("tiny", task, TASKS[task], 6, trained, batch=2)
    model = architectures.build(TINY, 0)
    torch.manual_seed(0)
    learner = train.Learner(Recipe((stage,)), model, Captioner(TINY), DenseHead(TINY))
    where = train.Files(folder / "going", folder / "kept")
    train.run_stage(0, stage, learner, where, 0, stop_after=steps_first)
    return list(model.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_stopped_training_goes_on_as_if_nothing_had_happened(task, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(train, "Lessons", lambda name: courses.Lessons(name, drawn))
    whole = run(task, tmp_path / "whole", drawn, monkeypatch)
    run(task, tmp_path / "parts", drawn, monkeypatch, steps_first=3)
    for a, b in zip(whole, run(task, tmp_path / "parts", drawn, monkeypatch), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    untouched = list(architectures.build(TINY, 0).parameters())
    assert any(not torch.equal(a, b) for a, b in zip(whole, untouched, strict=True))


def test_a_model_that_starts_from_another_keeps_its_own_where_that_learned_nothing():
    model = architectures.build(train.SIZES["cpu"], 0, "siglip_llama", "split", "waves")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    given = type(model).from_pretrained(places.MODELS / "backbone_only", dtype=torch.float32).state_dict()
    train.start_from(model, "backbone_only")
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[key] if given[key].any() else before[key]), key
    positions = "model.vision_tower.embeddings.position_embedding.weight"
    assert not given[positions].any() and before[positions].any()  # of both kinds there are some
    assert not torch.equal(given["lm_head.weight"], before["lm_head.weight"])


def test_recipes_are_possible():
    for recipe in RECIPES.values():
        assert recipe.architecture in architectures.ARCHITECTURES
        assert all(stage.course in courses.COURSES for stage in recipe.stages)
    with pytest.raises(UserError, match="not drawn yet"):
        courses.Lessons("captions", places.ROOT / "nowhere")


# --- the shipped models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_is_whole_small_and_carries_its_card(name):
    folder = places.MODELS / name
    assert (folder / "model.safetensors").stat().st_size < 5 * 2**20
    table = pd.read_csv(folder / "battery.csv")
    assert {"row", "direction", "n", "accuracy", "low", "high"} <= set(table)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Limits" in card and battery.in_words(table) in card


@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith(OWN_ADAPTER)])
def test_the_script_of_the_card_answers_red_without_this_library(name, tmp_path):
    """The card's own script, run in another process in which `lib` cannot be imported."""
    script = re.search(r"```python\n(.*?)```", (places.MODELS / name / "README.md").read_text(), re.S)[1]
    assert "lib" not in script.replace("library", "")
    script = script.replace(f"data/models/{name}", str(places.MODELS / name))
    out = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert out.stdout.strip().endswith("red"), out.stderr[-2000:]
