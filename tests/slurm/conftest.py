"""A real Slurm of four simulated hosts for the tests of this folder, where this machine can run one."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny import TINY

HERE = Path(__file__).parent / "box"
ROOT = Path(__file__).parent.parent.parent
_COMMANDS = ("slurmctld", "slurmd", "srun", "munged", "ip", "unshare", "nsenter")


def why_not() -> str | None:
    """Why the box cannot run here, None when it can."""
    if os.geteuid() != 0:
        return "the simulated Slurm cluster needs root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in _COMMANDS if not shutil.which(name, path=path)]
    if missing:
        packages = "slurmctld slurmd slurm-client munge iproute2 util-linux"
        return f"no {', '.join(missing)}: apt-get install {packages}"
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        return "this machine does not let root make namespaces (unshare fails)"
    return None


def _patience() -> float:
    """How much longer than usual things may take: by the processes that wait for each processor."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) / 2)


class Box:
    """The cluster: run commands on its login node, break its hosts, wait for what happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {
            "SLURMBOX": str(folder),
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self) -> "Box":
        # The box ends when this pipe does: none outlives the tests, however they end.
        read, self._write = os.pipe()
        env = self.env | {"OWNER_FD": str(read)}
        started = subprocess.run(
            [HERE / "start.sh"], env=env, pass_fds=[read], capture_output=True, text=True, timeout=60
        )
        os.close(read)
        assert started.returncode == 0, started.stdout + started.stderr
        return self

    def stop(self) -> None:
        subprocess.run([HERE / "stop.sh"], env=self.env, check=True, timeout=30)
        os.close(self._write)

    def popen(self, *words: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start a command on the login node."""
        command = [str(HERE / "run.sh"), *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.env, cwd=cwd, text=True, stdout=pipe, stderr=pipe)

    def run(self, *words: object, cwd: Path | None = None, check: bool = True) -> str:
        """Run a command on the login node; returns its output and errors."""
        process = self.popen(*words, cwd=cwd)
        out, err = process.communicate(timeout=100 * _patience())
        assert not check or process.returncode == 0, f"{words}: {process.returncode}\n{out}{err}"
        return out + err

    def translution(self, *words: object, cwd: Path, code: int = 0) -> str:
        """Run the `translution` command on the login node and expect its exit code."""
        main = "from launch.cli import main; main()"
        process = self.popen(sys.executable, "-c", main, *words, cwd=cwd)
        out, err = process.communicate(timeout=100 * _patience())
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}{err}"
        return out + err

    def node(self, name: str, how: str) -> None:
        """Break or mend a host: die, crash, unplug, plug, up."""
        script = [HERE / "node-up.sh", name] if how == "up" else [HERE / "node-kill.sh", name, how]
        self.run(*script)

    def fact(self, job: str, key: str) -> str:
        """A field of `scontrol show job`."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)[key]

    def until(self, what: Callable[[], object], seconds: float, describe: str) -> float:
        """Wait until `what()` is true, longer where others keep the machine busy; returns the seconds."""
        start = time.monotonic()
        while time.monotonic() - start < seconds * _patience():
            if what():
                return time.monotonic() - start
            time.sleep(0.3)
        state = self.run("squeue", "-t", "all", "-l") + self.run("sinfo", "-Nl")
        raise AssertionError(f"not within {seconds} s: {describe}\n{state}")

    def ended(self, job: str, seconds: float = 100) -> str:
        """Wait for the job's end; returns its state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.until(lambda: self.fact(job, "JobState") in over, seconds, f"job {job} ends")
        return self.fact(job, "JobState")


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    if reason := why_not():
        pytest.skip(reason)
    # Not among pytest's own directories: munge wants a path that everybody may walk.
    with tempfile.TemporaryDirectory(prefix="slurm-box-", ignore_cleanup_errors=True) as folder:
        box = Box(Path(folder)).start()
        yield box
        box.stop()


@pytest.fixture(scope="session")
def tiny() -> dict:
    """The tiny net; its runs are slowed down by the number of steps alone."""
    few = {"lr": 1e-3, "log_every": 1, "checkpoint_every": None}
    return TINY | {"data": TINY["data"] | {"test_samples": 20}, "train": TINY["train"] | few}
