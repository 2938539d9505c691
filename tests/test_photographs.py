"""Real photographs: loaders on folders made here and, where they are, on true samples; fetching from a bad
server."""

import hashlib
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from lib.errors import UserError
from lib.places import ROOT
from lib.stimuli import photographs, questions, token_sets
from lib.stimuli.grids import GRIDS

SAMPLES = ROOT.parent / "shared" / "data"
needs_coco = pytest.mark.skipif(not (SAMPLES / "coco_sample").is_dir(), reason="no sample of COCO beside the repo")
needs_whatsup = pytest.mark.skipif(
    not (SAMPLES / "whatsup_sample").is_dir(), reason="no sample of What'sUp beside the repo"
)


def plain(colour: str, size=(64, 48)) -> bytes:
    """A JPEG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


# --- What'sUp -----------------------------------------------------------------------------------------------


@pytest.fixture
def rooms(tmp_path):
    folder = tmp_path / "controlled_images"
    folder.mkdir()
    colours = {"mug_left_of_chair": "red", "soda-can_left_of_chair": "green", "mug_right_of_chair": "blue"}
    colours |= {"book_right_of_table": "black", "mug_on_chair": "white", "mug_left_of_sofa": "white"}
    for name, colour in colours.items():
        (folder / f"{name}.jpeg").write_bytes(plain(colour))
    return tmp_path


def test_composites_join_two_halves(rooms):
    left, right = photographs.whatsup(rooms)
    assert left.scene == right.scene and left == photographs.whatsup(rooms / "controlled_images")[0]
    assert left.question == "The object on the floor to the left of the chair is a(n)"
    assert (left.direction, left.candidates) == ("left", ("soda can", "mug", "chair"))
    assert (right.direction, right.candidates) == ("right", ("mug", "soda can", "chair"))
    assert [e.noun for e in left.entities] == ["soda can", "chair", "mug"]
    assert (left.entities[left.target].noun, right.entities[right.target].noun) == ("soda can", "mug")
    for canvas in (336, 225):
        picture = np.asarray(left.scene.image(canvas), int)
        half = canvas // 2
        assert picture.shape == (canvas, canvas, 3)
        assert np.abs(picture[:, :half] - (0, 128, 0)).max() < 6
        assert np.abs(picture[:, half:] - (0, 0, 255)).max() < 6


def test_names_can_be_chosen(rooms):
    with pytest.raises(UserError, match="no two photographs like"):
        photographs.whatsup(rooms, keep=lambda name: " " not in name)
    with pytest.raises(UserError, match="no two photographs like"):
        photographs.whatsup(rooms, references=("table",))
    with pytest.raises(UserError, match="There is no folder"):
        photographs.whatsup(rooms / "nowhere")


def test_a_damaged_photograph_is_named(rooms):
    item = photographs.whatsup(rooms)[0]
    item.scene.right.write_bytes(plain("blue")[:300])
    with pytest.raises(UserError, match="mug_right_of_chair.jpeg is not a readable picture"):
        item.scene.image(56)
    item.scene.right.unlink()
    with pytest.raises(UserError, match="There is no picture"):
        item.scene.image(28)


@needs_whatsup
def test_true_composites():
    items = photographs.whatsup(SAMPLES / "whatsup_sample")
    names = {p.name for p in (SAMPLES / "whatsup_sample" / "controlled_images").iterdir()}
    lefts, rights = ({n.split("_")[0] for n in names if f"_{s}_of_" in n} for s in ("left", "right"))
    assert len(items) == 2 * sum(a != b for a in lefts for b in rights) > 50
    assert {i.candidates[2] for i in items} == {"armchair"}
    picture = np.asarray(items[0].scene.image(336), int)
    parts = [np.asarray(photographs.Photograph(p).image(336), int) for p in (items[0].scene.left, items[0].scene.right)]
    assert (picture[:, :168] == parts[0][:, :168]).all() and (picture[:, 168:] == parts[1][:, 168:]).all()


# --- COCO-spatial -------------------------------------------------------------------------------------------


def instances(*boxes) -> dict:
    """An instances file with pictures 1 to 3 (640 x 480) and boxes (image, category name, x, y, width,
    height)."""
    names = sorted({box[1] for box in boxes})
    notes = [
        {"image_id": i, "category_id": names.index(n), "bbox": list(b), "iscrowd": int(n == "herd")}
        for i, n, *b in boxes
    ]
    return {
        "images": [{"id": i, "width": 640, "height": 480} for i in (1, 2, 3)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": notes,
    }


@pytest.fixture
def coco(tmp_path):
    """Paths (question file, photographs, instances file); photograph 3 is missing, 4 has no annotations."""
    rows = [
        [1, "A photo of a dog to the left of an orange", "A photo of a dog to the right of an orange"],
        [1, "A photo of a orange to the left of a dog", ""],
        [2, "A photo of a dining table below a dog", ""],
        [2, "A photo of a dog to the left of a herd", ""],
        [2, "A photo of a dog behind a dining table", ""],
        [3, "A photo of a dog above a orange", ""],
        [4, "A photo of a dog above a orange", ""],
    ]
    boxes = instances(
        (
            1,
            "dog",
            500,
            10,
            100,
            100,
        ),  # two dogs: the first is right of the orange, the second and third left
        (1, "dog", 10, 10, 50, 50),
        (1, "dog", 20, 200, 150, 150),
        (1, "orange", 300, 100, 40, 40),
        (2, "dog", 100, 100, 50, 50),
        (2, "dining table", 80, 300, 300, 150),
        (2, "herd", 400, 10, 200, 200),
    )
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "instances.json").write_text(json.dumps(boxes))
    folder = tmp_path / "val2017"
    folder.mkdir()
    for number in (1, 2, 4):
        (folder / photographs.coco_name(number)).write_bytes(plain("gray", (640, 480)))
    return tmp_path / "rows.json", tmp_path, tmp_path / "instances.json"


def test_coco_items_and_what_is_skipped(coco):
    loaded = photographs.coco_spatial(*coco)
    dog, orange, table = loaded.items
    assert (dog.subject, dog.relation, dog.reference) == ("dog", "left", "orange")
    assert dog.subject_box == (20, 200, 170, 350) and dog.reference_box == (300, 100, 340, 140)
    assert orange.subject_box == (300, 100, 340, 140) and orange.reference_box == (500, 10, 600, 110)
    assert (table.subject, table.relation, table.orientation) == ("dining table", "below", "vertical")
    assert dog.size == (640, 480) and dog.scene.image(168).size == (168, 168) and dog.key == orange.key == "1"
    assert [(s.row, s.reason) for s in loaded.skipped] == [
        (3, "without a box of subject or reference"),
        (4, "with another relation or wording"),
        (5, "without their photograph"),
        (6, "without an entry in the annotations"),
    ]
    assert str(loaded).startswith("3 items loaded, 4 skipped (1 ")
    assert photographs.coco_ids(coco[0]) == [1, 2, 3, 4]
    first, second = dog.questions("is_the")
    assert first == "Is the dog to the left or to the right of the orange? Answer with one word."
    assert second == "Is the dog to the right or to the left of the orange? Answer with one word."
    assert dog.candidates == ("left", "right") and table.candidates == ("below", "above")


def test_boxes_that_disagree_are_skipped(coco):
    coco[0].write_text(
        json.dumps([[2, "A photo of a dog below a dining table", ""], [1, "A photo of a dog below a orange", ""]])
    )
    loaded = photographs.coco_spatial(*coco)
    assert [s.reason for s in loaded.skipped] == ["without boxes that agree with the stated relation"]
    assert loaded.skipped[0].row == 0 and len(loaded.items) == 1


def test_bad_files_get_one_sentence(coco, tmp_path):
    rows, folder, boxes = coco
    bad = tmp_path / "bad.json"

    def message(*args) -> str:
        with pytest.raises(UserError) as caught:
            photographs.coco_spatial(*args)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for content, sentence in (
        ("", "not readable JSON"),
        ("[]", "holds no questions"),
        ("[[1, 2], [3]]", "has rows that are not"),
        ("7", "has rows that are not"),
    ):
        bad.write_text(content)
        assert sentence in message(bad, folder, boxes)
    bad.write_text('{"images": []}')
    assert "is not an instances file" in message(rows, folder, bad)
    assert "There is no file" in message(rows, folder, tmp_path / "nowhere.json")
    assert "There is no folder" in message(rows, tmp_path / "nowhere", boxes)
    shutil.rmtree(folder / "val2017")
    assert "No COCO question can be asked, 0 items loaded, 7 skipped" in message(rows, folder, boxes)


@needs_coco
def test_every_true_question_with_its_photograph_loads():
    folder = SAMPLES / "coco_sample"
    file = folder / "COCO_QA_two_obj.json"
    loaded = photographs.coco_spatial(file, folder, folder / "annotations" / "instances_val2017.json")
    there = {int(p.stem) for p in (folder / "val2017").iterdir()}
    rows = json.loads(file.read_text())
    assert len(loaded.items) == sum(row[0] in there for row in rows) == 12
    assert len(loaded.skipped) == len(rows) - 12 == 428
    assert {s.reason for s in loaded.skipped} == {"without their photograph"}
    assert len(photographs.coco_ids(file)) == 295
    for item in loaded.items:
        assert Image.open(item.scene.path).size == item.size
        axis = 0 if item.orientation == "horizontal" else 1
        a, b = (box[axis] + box[axis + 2] for box in (item.subject_box, item.reference_box))
        assert questions.OPPOSITE[item.relation] != item.relation
        assert (a < b) == (item.relation in ("left", "above")) and a != b
        for grid in GRIDS.values():
            one, two = (token_sets.box_tokens(box, grid, item.size) for box in (item.subject_box, item.reference_box))
            assert len(one) and len(two) and not np.array_equal(one, two)


# --- fetching -----------------------------------------------------------------------------------------------


class Flaky(BaseHTTPRequestHandler):
    """Serves picture 1 after a 500, picture 2 after a body cut short, picture 3 at once; knows no others."""

    asked: list[str] = []

    def do_GET(self):
        number = int(self.path.rsplit("/", 1)[1].removesuffix(".jpg"))
        before = self.asked.count(self.path)
        self.asked.append(self.path)
        body = plain("red", (640 + number, 480))
        if number == 1 and before == 0:
            self.send_error(500)
        elif number > 4:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            garbage = number == 4
            short = number == 2 and before == 0
            self.wfile.write(b"x" * len(body) if garbage else body[: len(body) // 2] if short else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Flaky.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/val2017"
        running.shutdown()


def fetch(ids, folder, url, **options):
    return photographs.fetch_coco(ids, folder, url, wait=0.001, progress=False, timeout=5, **options)


def test_fetching_survives_a_flaky_server_and_resumes(server, tmp_path):
    folder = fetch([3, 1, 2, 2], tmp_path / "photos", server)
    names = [photographs.coco_name(k) for k in (1, 2, 3)]
    assert sorted(p.name for p in folder.iterdir()) == [
        *names,
        photographs.MANIFEST,
    ]  # no temporary file is left
    assert [Image.open(folder / n).size for n in names] == [(641, 480), (642, 480), (643, 480)]
    digests = json.loads((folder / photographs.MANIFEST).read_text())
    assert digests == {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    assert len(Flaky.asked) == 5  # 1 and 2 were asked for twice

    (folder / names[0]).write_bytes(plain("red")[:200])  # damaged since: fetched again
    (folder / names[1]).unlink()  # lost
    (folder / photographs.MANIFEST).write_text("{ cut")  # made anew
    fetch([1, 2, 3], folder, server)
    assert len(Flaky.asked) == 7
    assert json.loads((folder / photographs.MANIFEST).read_text()) == digests
    fetch([1, 2, 3], folder, server)
    assert len(Flaky.asked) == 7


def test_a_failed_fetch_gets_one_sentence_and_the_rest_is_kept(server, tmp_path):
    with pytest.raises(UserError, match="000000000005.jpg .*404.*or put the photographs"):
        fetch([3, 5], tmp_path, server)
    assert len(Flaky.asked) == 2 and (tmp_path / photographs.coco_name(3)).is_file()  # a 404 is not tried again
    with pytest.raises(UserError, match="what came is not a whole picture"):
        fetch([4], tmp_path, server, tries=3)
    assert len(Flaky.asked) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == [photographs.coco_name(3), photographs.MANIFEST]


def test_no_network(tmp_path):
    with pytest.raises(UserError, match="Cannot fetch .*run the same again when the network is there") as caught:
        fetch([1], tmp_path, "http://127.0.0.1:9/val2017", tries=2)
    assert "\n" not in str(caught.value)
