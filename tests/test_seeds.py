"""Training seeds: names, collected ledgers, and what seeds say together."""

import pytest
from records import file_run

from lib.analysis.statistics import Estimate
from lib.artifact import ledger, manifests, record, seeds
from lib.engine import checkpoints
from lib.errors import UserError


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Two seeds of each recipe by name, ledgers of the published ones and of the others."""
    members = {recipe: {0: recipe, 1: f"{recipe}-seed1"} for recipe in ("reference", "joint")}
    monkeypatch.setattr(seeds, "seeds", lambda recipe: members.get(recipe, {0: recipe}))
    for recipe in members:
        write(tmp_path / "outputs", recipe, 0.9)
    write(tmp_path / "work", "reference-seed1", 0.8)
    write(tmp_path / "work", "joint-seed1", 0.1)
    monkeypatch.setenv("DUAL_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def write(root, model, value):
    row = ledger.row("strip_code", Estimate(value, value - 0.05, value + 0.05, 9), "02_x", "cell", setting="squares")
    file_run(root, model, "02_x", lambda folder: ledger.record(model, [row], "02_x", seed=0))


def test_names_of_seeds(tmp_path):
    for name in ("joint", "joint-seed2", "joint-seed10", "jointly-seed1", "joint-seedy", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert checkpoints.seeds("joint", tmp_path) == {0: "joint", 2: "joint-seed2", 10: "joint-seed10"}
    assert all(checkpoints.seeded("joint", seed) == name for seed, name in checkpoints.seeds("joint", tmp_path).items())


def test_a_verdict_holds_for_a_recipe_only_where_its_seeds_agree(house):
    table = seeds.collected(house / "work")
    assert list(table.columns) == seeds.COLUMNS and len(table) == 4
    said = seeds.agreed(table).set_index("recipe")
    assert said["verdict"].to_dict() == {"reference": "reproduced", "joint": "seeds differ"}
    assert (said["seeds"] == 2).all()


def test_a_seed_without_a_ledger_is_told(house):
    (house / "work/joint-seed1/runs/02_x.json").unlink()
    with pytest.raises(UserError, match="make seeds"):
        seeds.collected(house / "work")


def test_the_figure_has_a_panel_per_metric(house):
    table = seeds.collected(house / "work")
    figure = seeds.draw(table)
    assert len(figure.axes) == table["metric"].nunique() == 1
    heights = [container[0].get_ydata() for container in figure.axes[0].containers]
    assert sorted(y for part in heights for y in part) == sorted(table["value"])


@pytest.mark.parametrize("codes, code", [([0], 0), ([0, -9], 1), ([0, 2], 2), ([1, -15, 2], 1), ([0, 0], 0)])
def test_a_killed_run_is_no_success(codes, code):
    assert seeds.exit_code(codes) == code


def test_the_collected_claims_are_a_run_of_their_own(house, monkeypatch):
    monkeypatch.setattr(seeds, "run_others", lambda work, fresh: 0)
    monkeypatch.setattr(seeds, "recipes", lambda: ["reference", "joint"])
    assert seeds.main(["--work", str(house / "work")]) == 0
    manifest = manifests.read(seeds.run())
    assert set(manifest["results"]) == {"seeds.csv", "seeds.png", "seeds.pdf"}
    assert len(record.table("seeds", "seeds.csv")) == 4 and record.models() == ["reference", "joint"]
