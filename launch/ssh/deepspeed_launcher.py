"""`translution launch --hostfile HOSTS CONFIG`: check the hosts, then call DeepSpeed's launcher."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from launch.ssh.hostfile import (
    Report,
    ask_hosts,
    differences,
    read_hostfile,
    remote_python,
    ssh,
)
from launch.ssh.runner import wait
from parallel.code_folder import CODE_FOLDER
from parallel.errors import UserError
from trainer.errors import RESUME_COMMAND
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
    again = f"translution launch --hostfile {shlex.quote(str(hostfile))} --resume"
    variables = environment(reports) | {RESUME_COMMAND: again}
    with tempfile.NamedTemporaryFile("w", prefix=".deepspeed_env-", dir=Path.cwd()) as file:
        file.write("".join(f"{key}={value}\n" for key, value in variables.items()))
        file.flush()
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        command += ["--launcher", launcher, "--force_multi", "--quiet"]
        command += ["--master_addr", address, "--master_port", str(port), "--module", "trainer", *arguments]
        env = os.environ | {"DS_ENV_FILE": file.name}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE_FOLDER), os.environ.get("PYTHONPATH")]))
        # In a session of its own, out of reach of the terminal's Ctrl-C, at which it would kill the ranks.
        runner = subprocess.Popen(command, env=env, start_new_session=True)
        return wait(runner, list(hosts), variables[START_TOKEN])


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
