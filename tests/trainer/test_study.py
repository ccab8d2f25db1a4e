"""Studies: one net per combination, one table, and nothing trained twice."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

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


def test_seeds_become_mean_and_deviation(config_file: Path, tmp_path: Path, translution: Callable):
    root = tmp_path / "study"
    study = "study={model.mixer.share: [none, log], data.train: [static, dynamic], seed: [0, 1, 2]}"
    done = translution("train", config_file, study, f"run_dir={root}", "train.steps=2")
    assert done.code == 0, done.err
    results = json.loads((root / "results.json").read_text())
    assert len({result["run"] for result in results}) == len(results) == 12
    title, _, header = (root / "results.md").read_text().split("\n")[:3]
    assert title.endswith("after 2 steps, mean ± deviation of 3 seeds")
    none, log = done.out.strip().split("\n")[-2:]
    columns = ["", "parameters", "Static→Static", "Static→Dynamic", "Dynamic→Dynamic", "seconds"]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == columns
    assert none.startswith("share=none ")
    assert log.startswith("share=log ")
    for row, rule in ((none, "none"), (log, "log")):
        own = [result for result in results if result["values"]["model.mixer.share"] == rule]
        static = [result["evaluation"] for result in own if result["values"]["data.train"] == "static"]
        accuracies = [evaluation["dynamic"]["accuracy"] for evaluation in static]
        assert f"  {fmean(accuracies):.1f} ± {stdev(accuracies):.1f}  " in row
        assert row.split()[1] == f"{own[0]['parameters']:,}"

    (root / results[7]["run"] / "result.json").unlink()
    again = translution("train", "--resume", root)
    assert again.out.count("already finished") == 11
    evaluated = translution("evaluate", root)
    assert evaluated.out.strip().split("\n")[-1].split()[:4] == log.split()[:4]


def test_seeds_alone_are_one_row(config_file: Path, tmp_path: Path, translution: Callable):
    overrides = ("study={seed: [3, 4]}", "train.steps=1", f"run_dir={tmp_path / 'study'}")
    done = translution("train", config_file, *overrides)
    assert done.code == 0, done.err
    header, row = done.out.strip().split("\n")[-2:]
    assert header.split()[0] == "parameters"
    assert row.startswith("tiny ")
    assert row.count(" ± ") == 2


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
