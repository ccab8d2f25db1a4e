"""A real Slurm of six simulated hosts on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.slurm.queries import OVER
from parallel.code_folder import CODE_FOLDER

_SCRIPTS = Path(__file__).parent / "scripts"
_COMMANDS = ("slurmctld", "slurmd", "srun", "munged", "ip", "unshare", "nsenter")
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
_POLL_SECONDS = 0.1
_STATE_SECONDS = 0.5  # how long an answer of the controller is reused


def missing_requirement() -> str | None:
    """Why the cluster cannot run on this machine, None if it can."""
    if os.geteuid() != 0:
        return "the simulated Slurm cluster needs root"
    missing = [name for name in _COMMANDS if not shutil.which(name, path=_PATH)]
    if missing:
        packages = "slurmctld slurmd slurm-client munge iproute2 util-linux"
        return f"no {', '.join(missing)}: apt-get install {packages}"
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        return "this machine does not let root make namespaces (unshare fails)"
    return None


def _patience() -> float:
    """Factor for time limits: grows with the number of processes waiting for a core."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) / 2)


class Cluster:
    """Run commands on the login node, break hosts, wait for jobs. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env = os.environ | {
            "CLUSTER": str(folder),
            "PATH": _PATH,
            "PYTHONPATH": str(CODE_FOLDER),
            "OMP_NUM_THREADS": "1",
        }
        self._socket = folder / "commands.socket"
        self._lock = threading.Lock()
        self._jobs: dict[str, dict[str, str]] = {}
        self._jobs_until = 0.0

    def start(self) -> "Cluster":
        # The cluster ends when this pipe closes, so it never outlives the tests.
        read, self._owner = os.pipe()
        started = subprocess.run(
            [_SCRIPTS / "start.sh"],
            env=self._env | {"OWNER_FD": str(read)},
            pass_fds=[read],
            capture_output=True,
            text=True,
            timeout=60,
        )
        os.close(read)
        assert started.returncode == 0, started.stdout + started.stderr
        self._server = self.popen(sys.executable, "-m", "tests.slurm.command_server", self._socket)
        return self

    def stop(self) -> None:
        subprocess.run([_SCRIPTS / "stop.sh"], env=self._env, check=True, timeout=30)
        os.close(self._owner)
        self._server.communicate(timeout=30)

    def reset(self) -> None:
        """Cancel all jobs and wait until every node is idle again."""
        self.run("scancel", "--user=root", check=False)
        self.until(lambda: not self.run("squeue", "--noheader"), 60, "all jobs end")
        self.until(self._all_nodes_idle, 60, "all nodes are idle")

    def _all_nodes_idle(self) -> bool:
        nodes = dict(line.split() for line in self.run("sinfo", "-h", "-N", "--format=%N %T").splitlines())
        for node, state in nodes.items():
            if state.startswith(("down", "drain")):  # Slurm drains a node whose processes die too slowly
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        return set(nodes.values()) == {"idle"}

    def popen(self, *command: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start a command on the login node."""
        arguments = [str(_SCRIPTS / "run.sh"), *map(str, command)]
        pipe = subprocess.PIPE
        return subprocess.Popen(arguments, env=self._env, cwd=cwd, text=True, stdout=pipe, stderr=pipe)

    def run(self, *command: object, cwd: Path | None = None, check: bool = True) -> str:
        """Run a command on the login node; returns its output and errors."""
        process = self.popen(*command, cwd=cwd)
        out, err = process.communicate(timeout=100 * _patience())
        assert not check or process.returncode == 0, f"{command}: {process.returncode}\n{out}{err}"
        return out + err

    def translution(self, *arguments: object, cwd: Path, code: int | None = 0) -> str:
        """Run the `translution` command on the login node; returns its output and errors.

        Expects this exit code, any if None. A running process is forked, for starting Python takes seconds.
        """
        self.until(self._socket.exists, 60, "the command server starts")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(100 * _patience())
            connection.connect(str(self._socket))
            request = {"arguments": list(map(str, arguments)), "folder": str(cwd)}
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = b"".join(iter(lambda: connection.recv(2**16), b"")).decode()
        out, _, found = answer.rpartition("\0")
        assert code is None or found == str(code), f"{arguments}: {found}\n{out}"
        return out

    def on_host(self, host: str, *command: object) -> tuple[object, ...]:
        """The command, for `run` or `popen`, that runs on another host."""
        pid = (self.folder / "run" / f"{host}.init.pid").read_text().strip()
        return ("nsenter", "-t", pid, "--all", *command)

    @contextmanager
    def broken(self, host: str, how: str) -> Iterator[None]:
        """Break a host in one of the ways of node-kill.sh (die, crash, unplug), and repair it at the end."""
        self.run(_SCRIPTS / "node-kill.sh", host, how)
        try:
            yield
        finally:
            if how == "unplug":
                self.run(_SCRIPTS / "node-kill.sh", host, "plug")
            else:
                self.run(_SCRIPTS / "node-up.sh", host)

    @contextmanager
    def mounted(self, host: str, *mount: object) -> Iterator[None]:
        """Mount something on a host: the arguments of `mount`, the mount point last."""
        self.run(*self.on_host(host, "mount", *mount))
        try:
            yield
        finally:
            self.run(*self.on_host(host, "umount", mount[-1]))

    def job_fields(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`, a moment old at most; {} if there is no such job."""
        with self._lock:
            if time.monotonic() > self._jobs_until:
                self._jobs = {}
                for line in self.run("scontrol", "-o", "show", "job").splitlines():
                    fields = dict(re.findall(r"(\w+)=(\S*)", line))
                    array, task = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
                    name = f"{array}_{task}" if array else fields.get("JobId", "")
                    self._jobs[name] = fields
                self._jobs_until = time.monotonic() + _STATE_SECONDS
            return self._jobs.get(job, {})

    def until(self, condition: Callable[[], object], seconds: float, description: str) -> None:
        """Wait until the condition holds, longer on a busy machine."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > seconds * _patience():
                state = self.run("squeue", "-t", "all", "-l") + self.run("sinfo", "-Nl")
                raise AssertionError(f"not within {seconds} s: {description}\n{state}")
            time.sleep(_POLL_SECONDS)

    def final_state(self, job: str, seconds: float = 100) -> str:
        """Wait for the job's end; returns its state."""

        def state() -> str:
            return self.job_fields(job).get("JobState", "")

        self.until(lambda: state() in OVER, seconds, f"job {job} ends")
        return state()
