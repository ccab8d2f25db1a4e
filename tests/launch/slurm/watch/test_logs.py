"""`translution logs`: what a person reads of a job's output."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm.watch import logs
from tests.launch.slurm.recorded import RecordedSlurm, event, make_run, write_log

# Recorded on Slurm 22.05: a rank of two was killed and the job requeued; then another rank failed.
RANK_0 = """\
submitit INFO (2026-11-25 07:59:24,843) - Starting with JobEnvironment(job_id=7, global_rank=0(2))
submitit INFO (2026-11-25 07:59:24,843) - Loading pickle: /data/runs/two/slurm/7_submitted.pkl
job 7, start 1 on node[1-2], 2026-11-25 07:59:25
two  step 20/2000  loss 2.2410  lr 1.33e-03  81 images/s  0:05:24 left
srun: error: node2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=7.1
slurmstepd-node1: error: *** STEP 7.1 ON node1 CANCELLED AT 2026-11-25T08:00:02 ***
srun: Force Terminated StepId=7.1
node2: rank 1: Killed; requeued (1 of 10)
slurmstepd-node1: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-25T08:00:03 DUE TO JOB REQUEUE ***
submitit INFO (2026-11-25 08:00:10,715) - Starting with JobEnvironment(job_id=7, global_rank=0(2))
job 7, start 2 on node[1-2], 2026-11-25 08:00:10
going on from step 20
error: rank 0 of 2 lost another process of this run, which was killed (Connection closed)
srun: error: node2: task 1: Exited with exit code 1
"""
RANK_1 = """\
submitit INFO (2026-11-25 07:59:24,907) - Starting with JobEnvironment(job_id=7, global_rank=1(2))
Traceback (most recent call last):
  File "model.py", line 1, in <module>
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
"""
RECEIVED = [
    "job 7, start 1 on node[1-2], 2026-11-25 07:59:25",
    "two  step 20/2000  loss 2.2410  lr 1.33e-03  81 images/s  0:05:24 left",
    "node2: rank 1: Killed",
    "node2: rank 1: Killed; requeued (1 of 10)",
    "job 7, start 2 on node[1-2], 2026-11-25 08:00:10",
    "going on from step 20",
    "error: rank 0 of 2 lost another process of this run, which was killed (Connection closed)",
]


@pytest.fixture
def run(tmp_path: Path, recorded: RecordedSlurm) -> Path:
    found = make_run(tmp_path / "runs" / "two-aaaa", "7", events=[event("start", "7", -9)])
    write_log(found, "7", 0, RANK_0)
    write_log(found, "7", 1, RANK_1)
    recorded.says("squeue", "")
    recorded.says("scontrol", "JobId=7 JobState=FAILED\n")
    return found


def test_noise_is_left_out_and_the_rank_that_knows_the_cause_is_asked(run: Path, translution: Callable):
    out = translution("logs", "two", "--runs", run.parent).out.splitlines()
    assert out == [
        *RECEIVED,
        "rank 1 says why: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ]
    assert translution("logs", "two", "--runs", run.parent, "--raw").out.startswith(RANK_0)


def test_all_ranks_come_with_prefix_and_tail_limits_each(run: Path, translution: Callable):
    out = translution("logs", run, "--rank", "all", "--tail", "2").out.splitlines()
    assert out == [
        "[rank 0] going on from step 20",
        f"[rank 0] {RECEIVED[-1]}",
        '[rank 1]   File "model.py", line 1, in <module>',
        "[rank 1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ]
    assert "--rank x: expected a number, or all" in translution("logs", run, "--rank", "x").err
    assert f"{run}: rank 5 has no output" in translution("logs", run, "--rank", "5").err


def test_several_runs_come_with_their_names(run: Path, translution: Callable):
    other = make_run(run.parent / "other-bbbb", "8")
    write_log(other, "8", 0, "hello\n")
    out = translution("logs", "7", "8", "--runs", run.parent, "--tail", "1").out.splitlines()
    assert out[:2] == [f"two-aaaa: {RECEIVED[-1]}", "other-bbbb: hello"]


def test_following_asks_slurm_rarely_and_at_once_when_the_run_says_that_it_ended(
    run: Path, recorded: RecordedSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock, asked = [0.0], []

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] == 300:
            with (run / "slurm" / "7_0_log.out").open("a") as file:
                file.write("half a li")
        if clock[0] == 310:
            (run / "lives.jsonl").write_text('{"event": "finished", "job": "7", "time": 0}\n')
            with (run / "slurm" / "7_0_log.out").open("a") as file:
                file.write("ne\nthe last\n")

    def last_state(job: str) -> str:
        asked.append(clock[0])
        return "RUNNING" if clock[0] < 310 else "COMPLETED"

    monkeypatch.setattr(logs.time, "sleep", sleep)
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(logs, "last_state", last_state)
    logs.show_logs([run], 0, follow=True)
    assert capsys.readouterr().out.splitlines()[-2:] == ["half a line", "the last"]
    assert asked[-1] == 310
    assert len(asked) < 15, "five minutes"
