"""A comparison becomes a study of named nets with explicit values."""

from pathlib import Path

import pytest
import yaml

from parallel.errors import UserError
from tests.tiny import TINY
from trainer.compare.nets import comparison
from trainer.compare.plot import plot
from trainer.compare.report import Row
from trainer.compare.sizes import training_flops
from trainer.config.study import run_members

ATTENTION = {"kind": "attention", "heads": 2, "head_dim": 4}


def write(path: Path, **values) -> str:
    path.write_text(yaml.safe_dump(TINY | values))
    return str(path)


@pytest.fixture
def two_files(tmp_path: Path) -> list[str]:
    other = TINY["model"] | {"mixer": ATTENTION}
    return [write(tmp_path / "full.yaml"), write(tmp_path / "attention.yaml", model=other)]


def test_files_are_nets_with_three_seeds(two_files: list[str]):
    members = run_members(comparison(two_files, [], {}, None))
    assert [member.config.name for member in members] == [
        f"{name},seed={seed}" for name in ("full", "attention") for seed in (0, 1, 2)
    ]
    assert members[0].config.model.mixer.kind == "translution"
    assert members[3].config.model.mixer.kind == "attention"


def test_a_budget_of_flops_gives_each_net_its_steps(two_files: list[str]):
    members = run_members(comparison(two_files, [], {"budget": {"flops": 1e8}}, 1))
    for config in (member.config for member in members):
        spent = config.train.steps * config.train.batch * training_flops(config)
        assert 1e8 - config.train.batch * training_flops(config) < spent <= 1e8
    assert members[0].config.train.steps != members[1].config.train.steps


def test_rows_of_a_study_keep_their_columns(tmp_path: Path):
    study = {
        "model.mixer": [TINY["model"]["mixer"], ATTENTION],
        "data.train": ["static", "dynamic"],
        "seed": [7],
    }
    path = write(tmp_path / "rows.yaml", study=study, compare={"match": "params", "keep": ["Self-attention"]})
    resolved = comparison([path], [], {}, None)
    assert list(resolved.study or {}) == ["nets", "data.train", "seed"]
    assert list(resolved.study["nets"]) == ["Translution", "Self-attention"]
    assert len(run_members(resolved)) == 4


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"train": TINY["train"] | {"batch": 4}}, r"train.batch: .*b.yaml has 4, .*a.yaml 8"),
        ({"study": {"train.lr": [0.1, 0.2]}}, "has nets of its own"),
        ({"name": "a"}, "two nets have one name"),
    ],
)
def test_files_that_do_not_compare_are_refused(tmp_path: Path, change: dict, why: str):
    with pytest.raises(UserError, match=why):
        comparison([write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml", **change)], [], {}, None)


def test_a_name_that_no_net_has_is_refused(two_files: list[str]):
    with pytest.raises(UserError, match=r"reference=no: no net has this name; they are full, attention"):
        comparison(two_files, [], {"match": "params", "reference": "no"}, None)


def test_the_plot_is_a_png_and_the_same_again():
    rows = [
        Row("a", {"parameters": [9.0, 9.0], "x": [1.0, 2.0]}),
        Row("b", {"x": [3.0]}),
    ]
    picture = plot(rows, "title")
    assert picture[:4] == b"\x89PNG"
    assert picture == plot(rows, "title")
