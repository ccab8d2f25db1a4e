"""`translution runs remove`: the old go; the alive, the young, the best and halves of studies stay."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.runs.find import find_runs
from launch.runs.remove import choose
from launch.slurm.runs.job_record import JobRecord, write_record
from parallel.errors import UserError
from tests.launch.runs.written import set_age, write_run, write_study
from trainer.run_directory.starts import this_start

DAY = 86_400.0
OLD = 40 * DAY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "best", (90.0,), age=OLD)
    write_run(tmp_path / "old", (50.0,), age=OLD)
    write_run(tmp_path / "young", (60.0,), age=DAY)
    write_run(tmp_path / "alive", (), finished=False, start=this_start(1, 1), age=OLD)
    members = {"seed=0": {"accuracies": (1.0,)}, "seed=1": {"accuracies": (2.0,), "tags": ["odd"]}}
    write_study(tmp_path / "study", members, age=OLD)
    return tmp_path


def removed(folder: Path, older_than: str | None = "30d", keep_best: bool = False) -> set[str]:
    runs = find_runs(folder)
    return {unit.name for unit in choose(runs, runs, older_than, keep_best).remove}


def test_only_what_is_old_and_not_alive_is_chosen(folder: Path):
    assert removed(folder) == {"best", "old", "study"}
    assert removed(folder, "12h") == {"best", "old", "study", "young"}
    assert removed(folder, "10w") == set()
    set_age(folder / "study" / "seed=1", DAY)  # one young net keeps its study
    assert removed(folder) == {"best", "old"}


def test_the_best_of_every_measure_stay(folder: Path):
    assert removed(folder, keep_best=True) == {"old", "study"}


def test_a_filter_takes_no_half_of_a_study(folder: Path):
    runs = find_runs(folder)
    odd = [run for run in runs if "odd" in run.tags]
    choice = choose(odd, runs, None, False)
    assert not choice.remove
    assert choice.kept == {folder / "study": "has nets that the filter leaves out"}


def test_a_submitted_run_stays_where_slurm_does_not_say_that_it_is_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    write_record(folder / "old", JobRecord("", {}, jobs=["7"]))
    set_age(folder / "old", OLD)
    monkeypatch.setattr("launch.runs.remove.alive_runs", lambda runs: {})
    assert "old" in removed(folder)
    monkeypatch.setattr("launch.runs.remove.alive_runs", lambda runs: {run: "7" for run in runs})
    assert "old" not in removed(folder)

    def silent(runs: list[Path]) -> dict[Path, str]:
        raise UserError("squeue: not found")

    monkeypatch.setattr("launch.runs.remove.alive_runs", silent)
    assert "old" not in removed(folder)


def test_the_command_asks_first_and_then_deletes(
    folder: Path, translution: Callable, monkeypatch: pytest.MonkeyPatch
):
    words = ["runs", "remove", folder, "--older-than", "30d", "--keep-best"]
    done = translution(*words)
    assert (done.code, "give --yes to remove these" in done.err) == (2, True)
    assert f"keep    {folder / 'best'}: has the best static accuracy, 90" in done.out
    assert (folder / "old").exists()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, left in [(False, True), (True, False)]:
        monkeypatch.setattr("typer.confirm", lambda question, answer=answer: answer)
        assert translution(*words).code == 0
        assert (folder / "old").exists() is left
    assert {path.name for path in folder.iterdir()} == {"best", "young", "alive"}
    assert "nothing to remove" in translution(*words).out


def test_without_saying_which_nothing_is_removed(folder: Path, translution: Callable):
    for words, says in [
        ([], "say which, by --older-than 30d or --filter KEY=VALUE"),
        (["--older-than", "a month"], "--older-than a month: expected an age"),
    ]:
        done = translution("runs", "remove", folder, *words)
        assert done.code == 2
        assert says in done.err
