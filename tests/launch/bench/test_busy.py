"""`translution bench busy` times real runs with both waiting policies, and leaves no loop behind."""

import signal
import subprocess

from launch.bench import busy
from launch.bench.busy import RunTime, bench_busy, busy_loops


def test_each_policy_is_timed_quiet_and_beside_loops(config_file, monkeypatch):
    """The runs are stubs; what they are told and when loops run is real."""
    seen = []
    running = []

    def run(config, overrides, spin_count):
        seen.append((spin_count, len(running)))
        return RunTime(wall=10.0 if running else 4.0, cpu=7.0)

    class Loop:
        def __init__(self, command):
            running.append(self)

        def kill(self):
            running.remove(self)

        def wait(self):
            pass

    monkeypatch.setattr(busy, "_run", run)
    monkeypatch.setattr(subprocess, "Popen", Loop)
    table = bench_busy(config_file, ["train.steps=2"], loops=3, repeat=2)
    assert seen == [(300_000, 0), (1_000, 0), (300_000, 3), (1_000, 3)] * 2
    assert table.rows["ours (1,000 spins)"] == {
        "quiet": "4.0",
        "beside 3 loops": "10.0",
        "times": "2.5",
        "CPU quiet": "7.0",
        "CPU busy": "7.0",
    }


def test_loops_end_with_the_measurement():
    with busy_loops(2) as loops:
        assert [loop.poll() for loop in loops] == [None, None]
    assert [loop.poll() for loop in loops] == [-signal.SIGKILL] * 2


def test_a_run_that_fails_is_one_line(config_file, translution):
    outcome = translution("bench", "busy", config_file.with_name("missing.yaml"), "--repeat", "1")
    assert outcome.code == 2
    assert "error: bench busy: the run failed: " in outcome.err
    assert "missing.yaml" in outcome.err
    assert outcome.err.strip().splitlines()[-1].startswith("error:")
