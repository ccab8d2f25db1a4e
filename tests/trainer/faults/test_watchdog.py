"""A run that hangs ends, and says which rank the others wait for, and where it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faulty_ranks import exit_codes, is_rank, on_fetch, on_save, sleep_forever, started
from trainer.faults.fault_log import read_faults
from trainer.faults.hang_report import Report, describe_hang


def hang_in_the_loader() -> None:
    def hang(count: int, batch: object) -> object:
        if is_rank(1) and count == 4:
            sleep_forever()
        return batch

    on_fetch(hang)


def hang_in_a_collective() -> None:
    """Rank 1 takes part in one collective that rank 0 knows nothing of."""
    import torch
    import torch.distributed as dist

    def hang(count: int, batch: object) -> object:
        if is_rank(1) and count == 4:
            dist.all_reduce(torch.zeros(3))
        return batch

    on_fetch(hang)


def hang_in_a_save() -> None:
    def hang(count: int) -> None:
        if is_rank(0):
            sleep_forever()

    on_save(hang)


def stop_for_good() -> None:
    """As a machine that freezes."""
    import os
    import signal

    def hang(count: int, batch: object) -> object:
        if is_rank(1) and count == 4:
            os.kill(os.getpid(), signal.SIGSTOP)
        return batch

    on_fetch(hang)


HANGS = {
    "loader": (hang_in_the_loader, "rank 1 of 2 is waiting for data at trainer/train.py:"),
    "collective": (hang_in_a_collective, "; rank 1 of 2 is waiting for data at trainer/train.py:"),
    "save": (hang_in_a_save, "rank 0 of 2 is saving a checkpoint at trainer/run_directory/saving.py:"),
    "frozen": (stop_for_good, "rank 1 of 2 gave no sign of life"),
}


@pytest.mark.parametrize(
    "where",
    ["collective", "save", *(pytest.param(name, marks=pytest.mark.soak) for name in ("loader", "frozen"))],
)
def test_a_hang_ends_the_job_and_names_the_missing_rank_and_its_place(
    where: str, config_file: Path, tmp_path: Path
):
    fault, message = HANGS[where]
    run, log = tmp_path / "run", tmp_path / "log"
    with started(2, [config_file, f"run_dir={run}", "train.watchdog=3"], fault, log) as ranks:
        codes = exit_codes(ranks, 60, grace=1)
    frozen = where == "frozen"
    assert codes == ([1, -9] if frozen else [1, 1]), log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: no progress for ")
    assert message in line
    (folder,) = (run / "hangs").iterdir()
    assert str(folder) in line
    stacks = [(folder / f"rank-{rank}.txt").read_text() for rank in ((0,) if frozen else (0, 1))]
    assert all("in train_net" in stack for stack in stacks)
    (hang,) = read_faults(run)
    assert hang["fault"] == "hang"


def test_a_run_that_makes_progress_is_left_alone(config_file: Path, tmp_path: Path, translution: Callable):
    run = tmp_path / "run"
    ended = translution("train", config_file, f"run_dir={run}", "train.watchdog=30")
    assert ended.code == 0, ended.err
    assert not (run / "hangs").exists()


def report(rank: int, step: int = 5, doing: str = "computing a step", waiting: bool = True) -> Report:
    return Report(rank, step, doing, "trainer/train.py:1 in train_net", waiting)


@pytest.mark.parametrize(
    ("reports", "found"),
    [
        ([report(0), report(1)], "rank 2 of 3 gave no sign of life"),
        (
            [report(0), report(1, doing="waiting for data", waiting=False), report(2)],
            "rank 1 of 3 is waiting",
        ),
        ([report(0), report(1), report(2, step=4)], "rank 2 of 3 is computing a step at trainer/train.py:1"),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(reports: list[Report], found: str):
    assert describe_hang({each.rank: each for each in reports}, 3).startswith(found)


def test_reports_survive_json():
    assert Report(**json.loads(json.dumps(report(3)._asdict()))) == report(3)
