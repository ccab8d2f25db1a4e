"""What a word on the command line means."""

from pathlib import Path

import pytest

from launch.slurm.runs.selection import select_runs, split_overrides
from parallel.errors import UserError
from tests.launch.slurm.recorded import make_run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs of one name, a sweep of two, a damaged run, and a folder that is no run."""
    monkeypatch.chdir(tmp_path)
    sweep = str(tmp_path / "runs" / "lr-sweep-1234")
    Path(sweep).mkdir(parents=True)
    make_run(tmp_path / "runs" / "base-aaaa", "7", evaluation_jobs=["8"])
    make_run(tmp_path / "runs" / "base-bbbb", "9")
    make_run(tmp_path / "runs" / "lr-lr=1,seed=1-cccc", "60_0", sweep=sweep)
    make_run(tmp_path / "runs" / "lr-lr=2,seed=1-dddd", "60_1", sweep=sweep)
    make_run(tmp_path / "runs" / "torn-eeee", "10")
    (tmp_path / "runs" / "torn-eeee" / "slurm.json").write_text("")
    (tmp_path / "local").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["runs/base-aaaa"], ["base-aaaa"]),
        (["base-bbbb"], ["base-bbbb"]),
        (["base-a"], ["base-aaaa"]),
        (["runs/base-b"], ["base-bbbb"]),
        (["7"], ["base-aaaa"]),
        (["8"], ["base-aaaa"]),
        (["60_1"], ["lr-lr=2,seed=1-dddd"]),
        (["60"], ["lr-lr=1,seed=1-cccc", "lr-lr=2,seed=1-dddd"]),
        (["lr"], ["lr-lr=1,seed=1-cccc", "lr-lr=2,seed=1-dddd"]),
        (["runs/lr-sweep-1234"], ["lr-lr=1,seed=1-cccc", "lr-lr=2,seed=1-dddd"]),
        (["lr-sweep-1234"], ["lr-lr=1,seed=1-cccc", "lr-lr=2,seed=1-dddd"]),
        (["9", "base-b", "torn"], ["base-bbbb", "torn-eeee"]),
    ],
)
def test_a_word_is_a_directory_a_job_a_name_a_beginning_or_a_sweep(root: Path, words: list, names: list):
    assert [run.name for run in select_runs(words, root)] == names


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("base", "base: means 2 runs; write more of the name: base-aaaa, base-bbbb"),
        ("nothing", "nothing: no run in .*runs has this directory, name or job"),
        ("local", "local: was not submitted to Slurm: it has no slurm.json"),
        ("61", "61: no run in"),
    ],
)
def test_a_word_that_means_none_or_several_is_refused(root: Path, word: str, message: str):
    with pytest.raises(UserError, match=message):
        select_runs([word], root)


def test_runs_and_overrides_are_told_apart(root: Path):
    words = ["lr-lr=1", "train.lr=2", "runs/lr-lr=2,seed=1-dddd", "7", "train.betas[0]=0.8"]
    runs, overrides = split_overrides(words)
    assert runs == ["lr-lr=1", "runs/lr-lr=2,seed=1-dddd", "7"]
    assert overrides == ["train.lr=2", "train.betas[0]=0.8"]
