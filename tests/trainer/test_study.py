"""Studies: one net per combination, one table, and nothing trained twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = "study: {model.mixer.kind: [translution, attention], data.train: [static, dynamic]}\n"
MEMBERS = [
    "kind=translution,train=static",
    "kind=translution,train=dynamic",
    "kind=attention,train=static",
    "kind=attention,train=dynamic",
]


@pytest.fixture
def study_file(config_file: Path) -> Path:
    config_file.write_text(config_file.read_text() + STUDY)
    return config_file


def test_a_study_trains_every_combination_and_prints_the_table(
    study_file: Path, tmp_path: Path, translution: Callable
):
    root = tmp_path / "study"
    outcome = translution("train", study_file, f"run_dir={root}")
    assert outcome.code == 0, outcome.err
    results = json.loads((root / "results.json").read_text())
    assert [result["run"] for result in results] == MEMBERS
    assert all((root / member / "result.json").exists() for member in MEMBERS)

    title, header, translution_row, attention_row = outcome.out.strip().split("\n")[-4:]
    assert "test accuracy, %, after 6 steps" in title
    columns = ["parameters", "Static→Static", "Static→Dynamic", "Dynamic→Dynamic"]
    assert header.split() == columns
    for row, pair in [(translution_row, results[:2]), (attention_row, results[2:])]:
        static, dynamic = (result["evaluation"] for result in pair)
        assert row.split()[1:] == [
            f"{pair[0]['parameters']:,}",
            f"{static['static']['accuracy']:.1f}",
            f"{static['dynamic']['accuracy']:.1f}",
            f"{dynamic['dynamic']['accuracy']:.1f}",
        ]
    assert translution_row.startswith("Translution ")
    assert attention_row.startswith("Self-attention ")
    assert " | ".join(columns) in (root / "results.md").read_text()

    evaluated = translution("evaluate", root)
    assert evaluated.code == 0, evaluated.err
    assert evaluated.out.strip().split("\n")[-3:] == [header, translution_row, attention_row]


def test_a_resumed_study_trains_only_what_is_missing(study_file: Path, tmp_path: Path, translution: Callable):
    root = tmp_path / "study"
    table = translution("train", study_file, f"run_dir={root}").out.split("\n\n")[-1]
    (root / MEMBERS[2] / "result.json").unlink()
    before = {m: (root / m / "metrics.jsonl").stat().st_mtime_ns for m in MEMBERS}
    outcome = translution("train", "--resume", root)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("already finished") == 3
    assert outcome.out.split("\n\n")[-1] == table
    after = {m: (root / m / "metrics.jsonl").stat().st_mtime_ns for m in MEMBERS}
    assert [m for m in MEMBERS if before[m] != after[m]] == [MEMBERS[2]]


def test_a_net_that_cannot_run_is_refused_before_any_is_trained(
    config_file: Path, tmp_path: Path, translution: Callable
):
    overrides = ("study={model.patch_size: [28, 29]}", f"run_dir={tmp_path / 'study'}")
    outcome = translution("train", config_file, *overrides)
    assert outcome.code == 2
    assert "model.image_size 84 is not a multiple of patch_size 29" in outcome.err
    assert not (tmp_path / "study").exists()


def test_a_study_can_compare_whole_sections(config_file: Path, tmp_path: Path, translution: Callable):
    """Mixers of different kinds need not have a key in common."""
    mixers = "[{kind: translution, heads: 2, head_dim: 4, relative: v}, {kind: attention, heads: 1}]"
    overrides = (f"study={{model.mixer: {mixers}}}", f"run_dir={tmp_path / 'study'}", "train.steps=1")
    outcome = translution("train", config_file, *overrides)
    assert outcome.code == 0, outcome.err
    rows = outcome.out.strip().split("\n")[-2:]
    assert [row.split()[0] for row in rows] == ["Translution", "Self-attention"]
    again = translution("train", "--resume", tmp_path / "study")
    assert again.out.count("already finished") == 2


def test_nets_of_one_name_are_refused(config_file: Path, tmp_path: Path, translution: Callable):
    overrides = ("study={train.lr: [0.1, 0.1]}", f"run_dir={tmp_path / 'study'}")
    outcome = translution("train", config_file, *overrides)
    assert outcome.code == 2
    assert "2 nets would be called lr=0.1" in outcome.err
