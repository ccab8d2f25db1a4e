"""`translution doctor`: are the hosts alike, do they share the directory, do they meet, is one slow?"""

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.ssh.hostfile import Report, differences, read_hostfile, remote_python, ssh, survey
from parallel.errors import UserError

_SLOW = 0.6
"""A host is called slow below this part of the others' median."""
_MEASURE_SECONDS = 55.0


def check_hosts(hostfile: Path, port: int) -> int:
    """Ask and measure the hosts of a hostfile over ssh; prints a table, returns 1 for any finding."""
    hosts = list(read_hostfile(hostfile))
    reports = survey(hosts)
    well = [report.host for report in reports if not report.problem]
    measured: dict[str, dict[str, Any]] = {}
    findings = differences(reports)
    if well:
        try:
            address = ssh(well[0], remote_python("launch.meeting", str(port)), 30).strip()
            measured, unmeasured = _measure_over_ssh(well, address, port, reports)
            findings += unmeasured
        except UserError as error:
            findings.append(str(error))
    reports = [r._replace(facts=r.facts | measured.get(r.host, {})) for r in reports]
    return _tell(reports, findings)


def check_slurm(nodes: int, partition: str | None, gpus: int | None = None) -> int:
    """The same on nodes that Slurm gives, one process and `gpus` devices each."""
    token = f".probe-{uuid.uuid4().hex}"
    path = Path.cwd() / token
    path.touch()
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--time=5"]
    command += ["--immediate=60", "--kill-on-bad-exit=1", "--job-name=doctor"]
    command += [f"--partition={partition}"] if partition else []
    command += [f"--gpus-per-node={gpus}"] if gpus else []
    command += [sys.executable, "-m", "launch.ssh.host_speed", str(path.parent), token, "198.51.100.1"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    start = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=180)
    except FileNotFoundError:
        raise UserError("srun: not found; is this a machine of a Slurm cluster?") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"srun: {nodes} nodes gave no report within 180 s") from None
    finally:
        path.unlink()
    reports = [_report(line, start) for line in done.stdout.splitlines() if line.startswith("report ")]
    if not reports:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError((lines or [f"srun: exit code {done.returncode}"])[-1])
    findings = differences(reports)
    if len(reports) < nodes:
        findings.append(
            f"{nodes - len(reports)} of {nodes} nodes gave no report: {done.stderr.strip()[-200:]}"
        )
    return _tell(sorted(reports), findings)


def check_here() -> int:
    """This machine alone."""
    from launch.ssh.host_report import probe
    from launch.ssh.host_speed import matrix_speeds

    token = f".probe-{uuid.uuid4().hex}"
    path = Path.cwd() / token
    path.touch()
    try:
        facts = probe(path.parent, token, "198.51.100.1")
    finally:
        path.unlink()
    facts["matrix"] = matrix_speeds()
    report = Report(facts["host"], facts, None, 0.0)
    return _tell([report], differences([report]))


def slow_ones(reports: list[Report]) -> list[str]:
    """A line for each device or link that is much slower than its likes on the other hosts."""
    lines = []
    for key, what, verb in (("matrix", "its matrix products", "run"), ("link", "its network", "runs")):
        speeds = {r.host: r.facts[key] for r in reports if r.facts.get(key)}
        flat = [s for speed in speeds.values() for s in (speed if isinstance(speed, list) else [speed])]
        if len(flat) < 2:
            continue
        for host, speed in speeds.items():
            for number, each in enumerate(speed if isinstance(speed, list) else [speed]):
                others = list(flat)
                others.remove(each)
                usual = statistics.median(others)
                if each < _SLOW * usual:
                    device = f" on device {number}" if isinstance(speed, list) and len(speed) > 1 else ""
                    lines.append(f"{host}: {what}{device} {verb} at {each / usual:.0%} of the others' speed")
    return lines


def _measure_over_ssh(
    hosts: list[str], address: str, port: int, reports: list[Report]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    interfaces = {r.facts.get("interface") for r in reports if r.facts.get("interface")}
    token = f".probe-{uuid.uuid4().hex}"

    def one(number: int) -> dict[str, Any] | str:
        env = {"RANK": number, "WORLD_SIZE": len(hosts), "MASTER_ADDR": address, "MASTER_PORT": port}
        if len(interfaces) == 1:
            env["GLOO_SOCKET_IFNAME"] = next(iter(interfaces))
        if threads := os.environ.get("OMP_NUM_THREADS"):
            env["OMP_NUM_THREADS"] = threads
        words = " ".join(f"{key}={shlex.quote(str(value))}" for key, value in env.items())
        command = remote_python("launch.ssh.host_speed", str(Path.cwd()), token, address)
        try:
            text = ssh(hosts[number], f"export {words}; {command}", _MEASURE_SECONDS)
        except UserError as error:
            return str(error)
        lines = [line for line in text.splitlines() if line.startswith("report ")]
        return json.loads(lines[-1].removeprefix("report ")) if lines else f"{hosts[number]}: gave no report"

    path = Path.cwd() / token
    path.touch()
    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            answers = dict(zip(hosts, pool.map(one, range(len(hosts))), strict=True))
    finally:
        path.unlink()
    findings = [answer for answer in answers.values() if isinstance(answer, str)]
    facts = {host: answer for host, answer in answers.items() if isinstance(answer, dict)}
    findings += [answer["problem"] for answer in facts.values() if "problem" in answer]
    return facts, findings


def _report(line: str, start: float) -> Report:
    facts = json.loads(line.removeprefix("report "))
    # srun's start lies in between, so that only a clock far off can be told.
    off = min(facts["time"] - start, 0) or max(facts["time"] - time.time(), 0)
    return Report(facts["host"], facts, facts.get("problem"), off)


def _tell(reports: list[Report], findings: list[str]) -> int:
    table = Table(box=None, pad_edge=False)
    titles = ("host", "python", "torch", "deepspeed", "clock", "memory", "disk", "directory", "matrix")
    for title in (*titles, "link", "all-reduce", "met in"):
        table.add_column(title, no_wrap=True)
    for report in reports:
        facts = report.facts
        versions = facts.get("versions", {})
        shared = "shared" if facts.get("writable") else "missing" if facts else ""
        table.add_row(
            report.host,
            *(versions.get(name, "") for name in ("python", "torch", "deepspeed")),
            f"{report.clock:+.1f} s" if facts else "",
            _giga(facts.get("memory"), "GB free"),
            _giga(facts.get("disk"), "GB free"),
            shared,
            ", ".join(f"{speed / 1e9:,.0f} GFLOP/s" for speed in facts.get("matrix", [])),
            _giga(facts.get("link"), "GB/s"),
            _giga(facts.get("all_reduce"), "GB/s"),
            f"{facts['meeting_seconds']:.1f} s" if "meeting_seconds" in facts else "",
        )
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    Console(width=max(wide, 160)).print(table)
    findings = list(dict.fromkeys([*findings, *slow_ones(reports)]))
    for line in findings:
        print(f"✗ {line}", flush=True)
    if not findings:
        print("all well" if len(reports) == 1 else f"all {len(reports)} hosts are well and alike")
    return 1 if findings else 0


def _giga(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value / 1e9:.3g} {unit}"
