"""Stopping the training processes of one start on a host."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from launch.ssh.stop_trainers import stop_trainers
from trainer.run_directory.ownership import START_TOKEN

WAIT = """
import sys, time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_only_trainers_of_this_start_are_asked_to_stop(tmp_path: Path):
    for name in ("trainer", "launcher"):
        (tmp_path / f"{name}.py").write_text(WAIT)
    started = {}
    for module, token in (("trainer", "this"), ("trainer", "another"), ("launcher", "this")):
        started[module, token] = subprocess.Popen(
            [sys.executable, "-u", "-m", module],
            cwd=tmp_path,
            env=os.environ | {START_TOKEN: token, "PYTHONPATH": ""},
            stdout=subprocess.PIPE,
        )
    try:
        for process in started.values():
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
        assert stop_trainers("this", signal.SIGINT) == 1
        assert started["trainer", "this"].wait(timeout=20) == 7
        assert [process.poll() for process in started.values()] == [7, None, None]
        assert stop_trainers("another", signal.SIGHUP) == 1
        assert started["trainer", "another"].wait(timeout=20) == -signal.SIGTERM
    finally:
        for process in started.values():
            process.kill()
            process.communicate()
