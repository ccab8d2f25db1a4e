"""`translution launch --hostfile HOSTS CONFIG`: check the hosts, then call DeepSpeed's launcher."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from launch.ssh.hostfile import Report, ask_hosts, differences, read_hostfile, remote_python, ssh
from parallel.code_folder import CODE_FOLDER
from parallel.errors import UserError
from trainer.run_directory.ownership import START_TOKEN

_FORWARDED = (
    *("OMP_", "GOMP_", "KMP_", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TORCH_", "PYTORCH_", "TRITON_"),
    *("NCCL_", "GLOO_", "UCX_", "FI_", "LD_LIBRARY_PATH"),
)


def launch(
    hostfile: Path, arguments: list[str], port: int, launcher: str = "pdsh", force: bool = False
) -> int:
    """Run `python -m trainer ARGUMENTS` on the hosts, `slots` processes each; returns DeepSpeed's exit code.

    Raises UserError, within a minute and before starting a process, if a host does not answer, differs
    from the others or does not share this directory, or if the port is in use. With `force` differences
    are only printed.
    """
    hosts = read_hostfile(hostfile)
    if launcher == "pdsh" and not shutil.which("pdsh"):
        raise UserError("pdsh: not found; install it (apt-get install pdsh) or choose another --launcher")
    reports = ask_hosts(list(hosts))
    found = differences(reports)
    if found and (not force or any(report.problem for report in reports)):
        raise UserError("; ".join(found))
    for line in found:
        print(f"warning: {line}", flush=True)
    first = next(iter(hosts))
    address = ssh(first, remote_python("launch.rendezvous", str(port)), 30).strip()
    with tempfile.NamedTemporaryFile("w", prefix=".deepspeed_env-", dir=Path.cwd()) as file:
        file.write("".join(f"{key}={value}\n" for key, value in environment(reports).items()))
        file.flush()
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        command += ["--launcher", launcher, "--force_multi", "--quiet"]
        command += ["--master_addr", address, "--master_port", str(port), "--module", "trainer", *arguments]
        env = os.environ | {"DS_ENV_FILE": file.name}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE_FOLDER), os.environ.get("PYTHONPATH")]))
        return _wait(subprocess.Popen(command, env=env))


def _wait(runner: subprocess.Popen[bytes]) -> int:
    """Wait for DeepSpeed's runner. Forwards SIGTERM, on which it ends the processes on all hosts;
    Ctrl-C reaches it directly."""
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
    """The processes' environment: the user's .deepspeed_env, then forwarded variables, then the interface.

    If all hosts reach the first one by an interface of the same name, gloo and NCCL are told to use it;
    otherwise they may pick one without a route to the other hosts.
    """
    user_file = Path(".deepspeed_env")
    lines = user_file.read_text().splitlines() if user_file.is_file() else []
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    for key, value in os.environ.items():
        if key.startswith(_FORWARDED):
            variables.setdefault(key, value)
    interfaces = {report.values["interface"] for report in reports if report.values.get("interface")}
    if len(interfaces) == 1:
        (interface,) = interfaces
        for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            variables.setdefault(key, interface)
    return variables | {START_TOKEN: uuid.uuid4().hex}
