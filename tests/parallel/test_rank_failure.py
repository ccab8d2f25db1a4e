"""A lost rank ends the others within seconds with one line; so does an out-of-memory."""

import time
from pathlib import Path

import pytest

from parallel.rank_failure import explain_rank_failures
from tests.ranks import losses, start_ranks
from trainer.errors import exit_code
from trainer.faults.fault_log import read_faults

DEEPSPEED = ["parallel.engine=deepspeed", "parallel.zero=3"]


@pytest.mark.parametrize(("victim", "engine"), [pytest.param(0, [], marks=pytest.mark.soak), (1, DEEPSPEED)])
def test_a_killed_rank_ends_the_others_with_one_line(tmp_path, victim, engine):
    """Rank 0 also holds the rendezvous store."""
    run = tmp_path / "run"
    overrides = ["study=null", "device=cpu", f"run_dir={run}", *engine]
    overrides += ["train.batch=6", "train.steps=100000", "train.log_every=1"]
    with start_ranks(3, ["configs/debug.yaml", *overrides]) as ranks:
        deadline = time.monotonic() + 80
        while not is_training(run):
            assert time.monotonic() < deadline, "training did not begin"
            assert all(process.poll() is None for process in ranks)
            time.sleep(0.1)
        ranks[victim].kill()
        others = [process for rank, process in enumerate(ranks) if rank != victim]
        errors = "".join(process.communicate(timeout=30)[1] for process in others)
    assert [process.returncode for process in others] == [1, 1]
    assert errors.count("\n") == 1, errors
    assert f"of 3 lost another process of this run, probably rank {victim}, which was killed" in errors
    assert "--resume" in errors
    (fault,) = read_faults(run)
    assert fault["fault"] == "lost rank"
    assert fault["rank"] != victim


def is_training(run: Path) -> bool:
    """Whether training is under way. Before that, a rank that waits for a group to form notices a lost one
    only at its timeout, and it is the launcher that ends the job."""
    return (run / "metrics.jsonl").is_file() and len(losses(run)) >= 3


@pytest.mark.parametrize(
    "error", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")]
)
def test_out_of_memory_is_one_line(error, capsys):
    def action():
        with explain_rank_failures():
            raise error

    assert exit_code(action) == 1
    written = capsys.readouterr().err
    assert written.startswith("error: this process is out of memory: ")
    assert written.count("\n") == 1
    assert exit_code(action, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    def action():
        with explain_rank_failures():
            raise RuntimeError("shape '[2]' is invalid")

    with pytest.raises(RuntimeError, match="invalid"):
        exit_code(action)
