"""`translution runs compare`: configs, curves and evaluations side by side."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from launch.runs.compare import compare_runs
from tests.launch.runs.written import write_run, write_study
from tests.tiny import TINY


def test_two_runs_are_compared_by_what_differs(tmp_path: Path, translution: Callable):
    one = write_run(tmp_path / "one", (90.0,))
    other = write_run(tmp_path / "other", (80.0,), steps_done=3, train=TINY["train"] | {"lr": 0.5})
    configs, curves, evaluations = compare_runs([one, other])
    assert configs.rows["train.lr"] == {str(one): "0.01", str(other): "0.5"}
    assert set(configs.rows) == {"name", "train.lr"}
    assert curves.rows["step 1"] == {str(one): "2.9000", str(other): "2.9000"}
    assert curves.rows["step 2"][str(one)] == "2.8000"
    assert set(curves.rows["step 6"]) == {str(one)}
    assert evaluations.rows["static accuracy"] == {str(one): "90", str(other): "80"}
    done = translution("runs", "compare", one, other, "--plot", tmp_path / "curves.png")
    assert done.code == 0, done.err
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, translution: Callable):
    run = write_run(tmp_path / "run")
    study = write_study(tmp_path / "study", {"seed=0": {}})
    for words, says in [
        ([run], "needs two or more different runs"),
        ([run, run], "needs two or more different runs"),
        ([run, tmp_path], "not a run directory: it has no config.yaml"),
        ([run, study], f"{study}: is a study; name runs inside it"),
    ]:
        done = translution("runs", "compare", *words)
        assert done.code == 2
        assert says in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["curves.nothing"])
def test_a_picture_of_an_unknown_format_is_one_line(name: str, tmp_path: Path, translution: Callable):
    runs = [write_run(tmp_path / each) for each in ("one", "other")]
    done = translution("runs", "compare", *runs, "--plot", tmp_path / name)
    assert done.code == 2
    assert f"--plot {tmp_path / name}" in done.err
