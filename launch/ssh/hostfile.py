"""Reads a hostfile, asks its hosts over ssh for reports, and finds how they differ."""

import json
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from parallel.code_folder import CODE_FOLDER
from parallel.errors import UserError

CONNECT_SECONDS = 10
ANSWER_SECONDS = 40
CLOCK_SECONDS = 5.0


class Report(NamedTuple):
    """A host's answer: the values of launch/ssh/host_report.py, or the problem if it gave none."""

    host: str
    values: dict[str, Any]
    problem: str | None
    clock: float
    """Seconds by which its clock is ahead of this host's."""


def read_hostfile(path: Path) -> dict[str, int]:
    """Host → slots (processes), in the file's order. Raises UserError that names the line."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        entry = line.split("#")[0].strip()
        if not entry:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)", entry)
        if not match or int(match[2]) < 1:
            raise UserError(f"{path}:{number}: {entry!r}: expected `host slots=N`")
        if match[1] in hosts:
            raise UserError(f"{path}:{number}: {match[1]} is listed twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"{path}: lists no host; expected lines like `node1 slots=8`")
    return hosts


def ssh(host: str, command: str, seconds: float) -> str:
    """Run a shell command on a host and return its output; raises UserError if it fails or takes longer
    than `seconds`."""
    arguments = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", host, command]
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise UserError("ssh: not found; install an ssh client") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{host}: did not answer within {seconds:.0f} s") from None
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode == 255:
        raise UserError(f"{host}: cannot be reached over ssh: {last}")
    if done.returncode:
        raise UserError(f"{host}: {last}")
    return done.stdout


def remote_python(module: str, *arguments: str) -> str:
    """The shell command that runs a module of this checkout, with this Python, on another host."""
    command = ["env", f"PYTHONPATH={CODE_FOLDER}", sys.executable, "-m", module, *arguments]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"


def ask_hosts(hosts: list[str]) -> list[Report]:
    """Ask all hosts at the same time; takes about ANSWER_SECONDS at most."""
    token = f".doctor-{uuid.uuid4().hex}"
    path = Path.cwd() / token
    path.touch()
    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            return list(pool.map(lambda host: _ask(host, token, hosts[0]), hosts))
    finally:
        path.unlink()


def differences(reports: list[Report], directory: Path | None = None) -> list[str]:
    """One line for each host that gave no report, differs from most, or does not share the directory, by
    default the working directory."""
    directory = directory or Path.cwd()
    lines = [report.problem for report in reports if report.problem]
    answered = [report for report in reports if not report.problem]
    versions = {name for report in answered for name in report.values["versions"]}
    for name in sorted(versions):
        common, _ = Counter(report.values["versions"].get(name) for report in answered).most_common(1)[0]
        common_host = next(r.host for r in answered if r.values["versions"].get(name) == common)
        for report in answered:
            own = report.values["versions"].get(name)
            if own != common:
                lines.append(f"{report.host}: has {name} {own}, {common_host} has {common}")
    for report in answered:
        if not report.values["shared"]:
            lines.append(f"{report.host}: does not share the directory {directory}")
        elif not report.values["writable"]:
            lines.append(f"{report.host}: cannot write into {directory}")
    return lines + wrong_clocks(answered)


def wrong_clocks(reports: list[Report]) -> list[str]:
    """A line for each host whose clock is off."""
    return [
        f"{report.host}: its clock is {abs(report.clock):.0f} s {'ahead' if report.clock > 0 else 'behind'}"
        for report in reports
        if abs(report.clock) > CLOCK_SECONDS
    ]


def missing_gpus(reports: list[Report], asked: int | None) -> list[str]:
    """A line for each host where torch sees fewer than the GPUs `asked` for."""
    lines = []
    for report in reports:
        seen = report.values.get("gpus")
        if asked and seen is not None and seen < asked:
            why = report.values.get("gpus_hidden_by")
            lines.append(f"{report.host}: torch sees {seen} of {asked} GPUs" + (f" ({why})" if why else ""))
    return lines


def _ask(host: str, token: str, peer: str) -> Report:
    start = time.time()
    command = remote_python("launch.ssh.host_report", str(Path.cwd()), token, peer)
    try:
        values = json.loads(ssh(host, command, ANSWER_SECONDS).splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        return Report(host, {}, f"{host}: gave no report", 0.0)
    except UserError as error:
        return Report(host, {}, str(error), 0.0)
    return Report(host, values, None, values["time"] - (start + time.time()) / 2)
