"""The hosts of a hostfile: reading it, asking each over ssh, and what differs between them."""

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

from parallel.errors import UserError

CONNECT_SECONDS = 10
ANSWER_SECONDS = 40
CLOCK_SECONDS = 5.0


class Report(NamedTuple):
    """What a host said of itself (see launch/ssh/host_report.py), or why it said nothing."""

    host: str
    facts: dict[str, Any]
    problem: str | None
    clock: float
    """Seconds by which its clock is ahead of this one's."""


def read_hostfile(path: Path) -> dict[str, int]:
    """Host → processes, in the file's order. Raises UserError naming the line."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].strip()
        if not words:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)", words)
        if not match or int(match[2]) < 1:
            raise UserError(f"{path}:{number}: {words!r}: expected `host slots=N`")
        if match[1] in hosts:
            raise UserError(f"{path}:{number}: {match[1]} is there twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"{path}: names no host; expected lines like `node1 slots=8`")
    return hosts


def ssh(host: str, command: str, seconds: float) -> str:
    """Run a shell command on a host; raises UserError, within `seconds`, when that cannot be."""
    words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", host, command]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
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


def remote_python(module: str, *words: str) -> str:
    """The shell command that runs a module of this very code, with this very Python, on another host."""
    root = Path(__file__).resolve().parents[2]
    command = ["env", f"PYTHONPATH={root}", sys.executable, "-m", module, *words]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"


def survey(hosts: list[str]) -> list[Report]:
    """Ask all hosts at once; takes at most about ANSWER_SECONDS."""
    token = f".probe-{uuid.uuid4().hex}"
    path = Path.cwd() / token
    path.touch()
    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            return list(pool.map(lambda host: _ask(host, token, hosts[0]), hosts))
    finally:
        path.unlink()


def differences(reports: list[Report]) -> list[str]:
    """One line for each host that does not answer, differs from most others, or lacks the directory."""
    lines = [report.problem for report in reports if report.problem]
    answered = [report for report in reports if not report.problem]
    versions = {name for report in answered for name in report.facts["versions"]}
    for name in sorted(versions):
        usual, _ = Counter(report.facts["versions"].get(name) for report in answered).most_common(1)[0]
        usual_host = next(r.host for r in answered if r.facts["versions"].get(name) == usual)
        for report in answered:
            own = report.facts["versions"].get(name)
            if own != usual:
                lines.append(f"{report.host}: has {name} {own}, {usual_host} has {usual}")
    for report in answered:
        if not report.facts["shared"]:
            lines.append(f"{report.host}: does not share the directory {Path.cwd()}")
        elif not report.facts["writable"]:
            lines.append(f"{report.host}: may not write into {Path.cwd()}")
        if abs(report.clock) > CLOCK_SECONDS:
            ahead = "ahead" if report.clock > 0 else "behind"
            lines.append(f"{report.host}: its clock is {abs(report.clock):.0f} s {ahead}")
    return lines


def _ask(host: str, token: str, peer: str) -> Report:
    start = time.time()
    command = remote_python("launch.ssh.host_report", str(Path.cwd()), token, peer)
    try:
        facts = json.loads(ssh(host, command, ANSWER_SECONDS).splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        return Report(host, {}, f"{host}: gave no report", 0.0)
    except UserError as error:
        return Report(host, {}, str(error), 0.0)
    return Report(host, facts, None, facts["time"] - (start + time.time()) / 2)
