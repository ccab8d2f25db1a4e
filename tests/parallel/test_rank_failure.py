"""A rank is killed in the middle of a run: the others end within seconds, and one line tells why."""

import time
from pathlib import Path

import pytest

from parallel.rank_failure import failures_named
from tests.ranks import losses, started
from trainer.errors import exit_code

DEEPSPEED = ["parallel.engine=deepspeed", "parallel.zero=3"]


@pytest.mark.parametrize(("victim", "engine"), [(0, []), (1, DEEPSPEED)])
def test_a_killed_rank_ends_the_others_with_one_line(tmp_path, victim, engine):
    """Rank 0 also keeps the store where the ranks met."""
    run = tmp_path / "run"
    words = ["configs/debug.yaml", "study=null", "device=cpu", f"run_dir={run}", *engine]
    few = ["train.batch=6", "train.steps=100000", "train.log_every=1"]
    with started(3, [*words, *few]) as ranks:
        deadline = time.monotonic() + 80
        while not trains(run):
            assert time.monotonic() < deadline, "training did not begin"
            assert all(process.poll() is None for process in ranks)
            time.sleep(0.1)
        ranks[victim].kill()
        others = [process for rank, process in enumerate(ranks) if rank != victim]
        errors = "".join(process.communicate(timeout=30)[1] for process in others)
    assert [process.returncode for process in others] == [1, 1]
    assert errors.count("\n") == 1, errors
    assert "of 3 lost another process of this run" in errors
    assert "--resume" in errors


def trains(run: Path) -> bool:
    """Past the start, in which a rank that waits for others to form a group notices nothing until its
    timeout: there a launcher ends the job."""
    return (run / "metrics.jsonl").is_file() and len(losses(run)) >= 3


@pytest.mark.parametrize(
    "error", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")]
)
def test_too_little_memory_is_one_line(error, capsys):
    def action():
        with failures_named():
            raise error

    assert exit_code(action) == 1
    written = capsys.readouterr().err
    assert written.startswith("error: this process is out of memory: ")
    assert written.count("\n") == 1
    assert exit_code(action, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    def action():
        with failures_named():
            raise RuntimeError("shape '[2]' is invalid")

    with pytest.raises(RuntimeError, match="invalid"):
        exit_code(action)
