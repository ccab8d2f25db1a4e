"""`translution jobs`: the table in every width, filters, and how often Slurm is asked."""

import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.text import Text

from launch.slurm.queries import ALIVE, OVER
from launch.slurm.watch import jobs
from launch.slurm.watch.job_table import table_lines
from launch.slurm.watch.jobs import Filter, job_rows
from tests.launch.slurm.recorded import NOW, RecordedSlurm, event, make_run

GOLDEN = Path(__file__).parent / "golden"
REASONS = {
    "PENDING": "Priority",
    "REQUEUED": "BeginTime",
    "TIMEOUT": "TimeLimit",
    "NODE_FAIL": "NodeFail",
    "OUT_OF_MEMORY": "OutOfMemory",
    "FAILED": "NonZeroExitCode",
}
FAILED = "runs/x: loss or gradient is not finite since step 300; lower train.lr=0.1"


def many_runs(root: Path, slurm: RecordedSlurm, count: int) -> None:
    """Runs in every state that there is, in turn; of the last six, Slurm does not say it itself."""
    states = [*ALIVE, *OVER, "PREEMPTED", "FORGOTTEN", "GONE", "ACCOUNTED", "USED UP", "UNSENT", "DAMAGED"]
    queued, accounted = [], []
    for number in range(count):
        state, job = states[(5 + number) % len(states)], str(60372 + number)
        if number % 3 == 0:
            job = f"60300_{number}"
        run = root / f"imagenet-b16-lr={number + 1}e-4-{number:03}c0ffee"
        started, last = [event("start", job, -7200, nodes=f"node[{number}-{number + 1}]")], []
        if state in ALIVE or state in OVER or state == "PREEMPTED":
            left = "1-02:00:00" if state in ALIVE else "0:00"
            nodes = f"node[{number}-{number + 1}]" if state not in ("PENDING", "REQUEUED") else ""
            queued.append(f"{job}|{state}|{nodes}|{left}|{REASONS.get(state, 'None')}")
        if state == "FAILED":
            last = [event("refused", job, -10), event("failed", job, -9, cause=FAILED)]
        if state in ("COMPLETED", "FORGOTTEN"):
            last = [event("finished", job, -10)]
        if state == "USED UP":
            last = [event("stopped", job, -10, signal=12), event("exhausted", job, -9)]
        if state == "ACCOUNTED":
            accounted.append(f"{job}|CANCELLED by 1000")
        sent = None if state == "UNSENT" else job
        began = [] if state in ("PENDING", "UNSENT") else started + last
        make_run(run, sent, step=10 * number if began else 0, events=began, submitted=-8000.0 - 10 * number)
        if state == "DAMAGED":
            (run / "slurm.json").write_text("")
            os.utime(run / "slurm.json", (NOW - 9000, NOW - 9000))
    slurm.says("squeue", "".join(f"{line}\n" for line in queued))
    slurm.says("sacct", "".join(f"{line}\n" for line in accounted))


def shown(name: str, monkeypatch: pytest.MonkeyPatch, root: Path) -> str:
    """What `jobs` shows in a terminal of so many columns, in a pipe, or in frames while watching."""
    frames: list[str] = []
    if name in ("80", "120"):
        return "\n".join(table_lines(job_rows(root), int(name)))
    if name == "piped":
        monkeypatch.setattr("builtins.print", lambda text: frames.append(text))
        jobs.show_jobs(root, Filter())
        return "\n".join(frames)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr(jobs.Console, "is_terminal", True)
    monkeypatch.setattr(jobs, "_width", lambda wide: 100)
    with pytest.raises(KeyboardInterrupt):
        watch(root, monkeypatch, frames, _interrupt)
    return "\n".join(frames)


def watch(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    frames: list[str],
    sleep: Callable,
    clock: Callable = time.time,
) -> None:
    """`jobs --watch` without a terminal; its frames are added to `frames`."""

    class Live:
        def __init__(self, **_: object) -> None:
            pass

        def __enter__(self) -> "Live":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, text: Text, refresh: bool) -> None:
            frames.append(text.plain)

    monkeypatch.setattr(jobs, "Live", Live)
    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=sleep, monotonic=clock, time=time.time))
    jobs.show_jobs(root, Filter(), watch=True)


def _interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["80", "120", "piped", "watch"])
@pytest.mark.parametrize("count", [1, 40])
def test_the_table_is_as_recorded(
    recorded: RecordedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, name: str
):
    many_runs(tmp_path / "runs", recorded, count)
    text = shown(name, monkeypatch, tmp_path / "runs")
    assert text + "\n" == (GOLDEN / f"{count}-{name}.txt").read_text()
    if name not in ("piped", "watch"):
        assert max(map(len, text.splitlines())) <= int(name)


@pytest.mark.parametrize("width", [None, 120, 80, 60])
def test_ids_states_and_steps_are_never_cut(recorded: RecordedSlurm, tmp_path: Path, width: int | None):
    many_runs(tmp_path / "runs", recorded, 40)
    rows = job_rows(tmp_path / "runs")
    lines = table_lines(rows, width)[1:]
    for row, line in zip(rows, lines, strict=True):
        assert line.split()[0] == row.job or not row.job
        assert row.state.state in line.split()
        assert row.progress is None or f" {row.progress.step}/1000 " in f"{line} "
        assert width is not None or row.state.why in line


def test_a_folder_without_runs_is_an_error(recorded: RecordedSlurm, tmp_path: Path, translution: Callable):
    for options in ([], ["--watch"]):
        outcome = translution("jobs", "--runs", tmp_path / "none", *options)
        assert (outcome.code, outcome.err) == (2, f"error: {tmp_path / 'none'}: contains no submitted runs\n")
    assert translution("jobs", "--runs", tmp_path / "none", "--json").out == "[]\n"


def test_a_look_costs_one_squeue_and_at_most_one_sacct(recorded: RecordedSlurm, tmp_path: Path):
    many_runs(tmp_path / "runs", recorded, 40)
    job_rows(tmp_path / "runs")
    assert [call.split()[0] for call in recorded.calls()] == ["squeue", "sacct"]
    (tmp_path / "one").mkdir()
    make_run(tmp_path / "one" / "a", "7", events=[event("start", "7", -9), event("finished", "7", -1)])
    job_rows(tmp_path / "one")
    assert [call.split()[0] for call in recorded.calls()] == ["squeue"], "its run says how it ended"


def test_watching_asks_ever_more_rarely_until_a_state_changes(
    recorded: RecordedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_run(tmp_path / "runs" / "a", "7", step=10, events=[event("start", "7", -60)])
    recorded.says("squeue", "7|RUNNING|node1|1:00|None\n")
    clock, looks = [0.0], []
    ask = jobs.SlurmView.look

    def look(view: jobs.SlurmView, runs: list[Path]) -> dict:
        looks.append(clock[0])
        if clock[0] > 300:
            recorded.says("squeue", "7|COMPLETED|node1|0:00|None\n")
        return ask(view, runs)

    monkeypatch.setattr(jobs.SlurmView, "look", look)

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    frames: list[str] = []
    watch(tmp_path / "runs", monkeypatch, frames, sleep, lambda: clock[0])
    assert len(frames) > 150, "steps are read every two seconds"
    gaps = [after - before for before, after in pairwise(looks)]
    assert gaps == sorted(gaps)
    assert gaps[0] <= 4
    assert gaps[-1] == 60
    assert len(looks) < 15
    assert len(recorded.calls()) == len(looks), "one squeue each"


def test_watch_ends_when_all_runs_have_ended(
    recorded: RecordedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_run(tmp_path / "runs" / "a", "7", step=10)
    recorded.says("squeue", "7|COMPLETED|node1|0:00|None\n")
    frames: list[str] = []
    watch(tmp_path / "runs", monkeypatch, frames, _interrupt)
    assert len(frames) == 1


def test_filters_and_json(recorded: RecordedSlurm, tmp_path: Path, translution: Callable):
    root = tmp_path / "runs"
    many_runs(root, recorded, 40)

    def found(*options: str) -> list[dict]:
        outcome = translution("jobs", "--runs", root, "--json", *options)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    everything = found()
    assert len(everything) == 40
    assert {row["state"] for row in found("--state", "failed,PENDING")} == {"FAILED", "PENDING"}
    (one,) = found("--name", "lr=7e-4")
    assert Path(one["directory"]).name == "imagenet-b16-lr=7e-4-006c0ffee"
    assert len(found("--name", "*-0?0c0ffee")) == 4
    assert len(found("--since", "3h")) == 40
    assert len(found("--since", "135m")) == 11
    running = next(row for row in everything if row["state"] == "RUNNING" and row["step"])
    assert running["seconds_left"] == (1000 - running["step"]) * 64 / 128
    assert running["device_hours"] == pytest.approx(2 * 8)
    for options, message in (
        (["--state", "gone"], "--state GONE: no such state; valid: pending,"),
        (["--since", "soon"], "--since soon: expected an age as in 12h"),
    ):
        outcome = translution("jobs", "--runs", root, *options)
        assert outcome.code == 2
        assert message in outcome.err
