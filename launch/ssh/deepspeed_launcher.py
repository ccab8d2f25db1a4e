"""`translution launch --hostfile HOSTS CONFIG`: look at the hosts first, then call DeepSpeed's launcher."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from launch.ssh.hostfile import Report, differences, read_hostfile, remote_python, ssh, survey
from parallel.errors import UserError

_PASSED_ON = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "NCCL_", "GLOO_", "TORCH_")


def launch(hostfile: Path, words: list[str], port: int, launcher: str = "pdsh", force: bool = False) -> int:
    """Start `python -m trainer WORDS` on the hosts, `slots` processes each; returns DeepSpeed's exit code.

    Raises UserError, within a minute and with no process started, for a host that does not answer,
    differs from the others or lacks this directory, and for a port that is taken; with `force`
    differences are printed only.
    """
    hosts = read_hostfile(hostfile)
    if launcher == "pdsh" and not shutil.which("pdsh"):
        raise UserError("pdsh: not found; install it (apt-get install pdsh) or choose another --launcher")
    reports = survey(list(hosts))
    found = differences(reports)
    if found and (not force or any(report.problem for report in reports)):
        raise UserError("; ".join(found))
    for line in found:
        print(f"warning: {line}", flush=True)
    first = next(iter(hosts))
    address = ssh(first, remote_python("launch.meeting", str(port)), 30).strip()
    with tempfile.NamedTemporaryFile("w", prefix=".deepspeed_env-", dir=Path.cwd()) as file:
        file.write("".join(f"{key}={value}\n" for key, value in environment(reports).items()))
        file.flush()
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        command += ["--launcher", launcher, "--force_multi", "--quiet"]
        command += ["--master_addr", address, "--master_port", str(port), "--module", "trainer", *words]
        env = os.environ | {"DS_ENV_FILE": file.name}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [_root(), os.environ.get("PYTHONPATH")]))
        return _wait(subprocess.Popen(command, env=env))


def _wait(runner: subprocess.Popen[bytes]) -> int:
    """DeepSpeed's runner ends the processes on all hosts at SIGTERM; Ctrl-C reaches it by itself."""
    before = signal.signal(signal.SIGTERM, lambda number, _: runner.send_signal(number))
    try:
        while True:
            try:
                return runner.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def environment(reports: list[Report]) -> dict[str, str]:
    """What every process is to have in its environment: the user's own file first, then what is known.

    All hosts that reach the first by an interface of one name are told to use it: without, gloo and
    NCCL may choose one that leads nowhere.
    """
    own = Path(".deepspeed_env")
    lines = own.read_text().splitlines() if own.is_file() else []
    given = dict(line.split("=", 1) for line in lines if "=" in line)
    for key, value in os.environ.items():
        if key.startswith(_PASSED_ON):
            given.setdefault(key, value)
    interfaces = {report.facts["interface"] for report in reports if report.facts.get("interface")}
    if len(interfaces) == 1:
        (interface,) = interfaces
        for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            given.setdefault(key, interface)
    return given | {"TRANSLUTION_START_TOKEN": uuid.uuid4().hex}


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])
