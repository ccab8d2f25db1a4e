"""`translution doctor`: check that hosts are alike, share the directory and meet, and that none is slow."""

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

from launch.ssh.hostfile import (
    Report,
    ask_hosts,
    differences,
    missing_gpus,
    read_hostfile,
    remote_python,
    ssh,
)
from parallel.code_folder import CODE_FOLDER
from parallel.errors import UserError

_SLOW = 0.6
"""A host is slow below this fraction of the others' median speed."""
_MEASURE_SECONDS = 55.0


def check_hosts(hostfile: Path, port: int) -> int:
    """Check the hosts of a hostfile over ssh and print a table; returns 1 if anything is wrong, else 0."""
    hosts = list(read_hostfile(hostfile))
    reports = ask_hosts(hosts)
    answering = [report.host for report in reports if not report.problem]
    measured: dict[str, dict[str, Any]] = {}
    findings = differences(reports)
    if answering:
        try:
            address = ssh(answering[0], remote_python("launch.rendezvous", str(port)), 30).strip()
            measured, failures = _measure_over_ssh(answering, address, port, reports)
            findings += failures
        except UserError as error:
            findings.append(str(error))
    reports = [r._replace(values=r.values | measured.get(r.host, {})) for r in reports]
    return _print_findings(reports, findings)


def check_slurm(nodes: int, partition: str | None, gpus: int | None = None) -> int:
    """The same for nodes allocated by Slurm, with one process and `gpus` devices each."""
    token = f".doctor-{uuid.uuid4().hex}"
    path = Path.cwd() / token
    path.touch()
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--time=5"]
    command += ["--immediate=60", "--kill-on-bad-exit=1", "--job-name=doctor"]
    command += [f"--partition={partition}"] if partition else []
    command += [f"--gpus-per-node={gpus}"] if gpus else []
    command += [sys.executable, "-m", "launch.ssh.host_speed", str(path.parent), token, "198.51.100.1"]
    env = os.environ | {"PYTHONPATH": str(CODE_FOLDER)}
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
    findings = differences(reports) + missing_gpus(reports, gpus)
    if len(reports) < nodes:
        findings.append(
            f"{nodes - len(reports)} of {nodes} nodes gave no report: {done.stderr.strip()[-200:]}"
        )
    return _print_findings(sorted(reports), findings)


def check_here() -> int:
    """The same for this machine."""
    from launch.ssh.host_report import describe_host
    from launch.ssh.host_speed import matrix_speeds

    token = f".doctor-{uuid.uuid4().hex}"
    path = Path.cwd() / token
    path.touch()
    try:
        values = describe_host(path.parent, token, "198.51.100.1")
    finally:
        path.unlink()
    values["matrix"] = matrix_speeds()
    report = Report(values["host"], values, None, 0.0)
    return _print_findings([report], differences([report]))


def slow_hosts(reports: list[Report]) -> list[str]:
    """A line for each device or link that is much slower than those of the other hosts."""
    lines = []
    for key, subject, verb in (("matrix", "its matrix products", "run"), ("link", "its network", "runs")):
        speeds = {r.host: r.values[key] for r in reports if r.values.get(key)}
        flat = [s for speed in speeds.values() for s in (speed if isinstance(speed, list) else [speed])]
        if len(flat) < 2:
            continue
        for host, speed in speeds.items():
            for number, each in enumerate(speed if isinstance(speed, list) else [speed]):
                others = list(flat)
                others.remove(each)
                median = statistics.median(others)
                if each < _SLOW * median:
                    device = f" on device {number}" if isinstance(speed, list) and len(speed) > 1 else ""
                    lines.append(
                        f"{host}: {subject}{device} {verb} at {each / median:.0%} of the others' speed"
                    )
    return lines


def _measure_over_ssh(
    hosts: list[str], address: str, port: int, reports: list[Report]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    interfaces = {r.values.get("interface") for r in reports if r.values.get("interface")}
    token = f".doctor-{uuid.uuid4().hex}"

    def measure(rank: int) -> dict[str, Any] | str:
        env = {"RANK": rank, "WORLD_SIZE": len(hosts), "MASTER_ADDR": address, "MASTER_PORT": port}
        if len(interfaces) == 1:
            env["GLOO_SOCKET_IFNAME"] = next(iter(interfaces))
        if threads := os.environ.get("OMP_NUM_THREADS"):
            env["OMP_NUM_THREADS"] = threads
        variables = " ".join(f"{key}={shlex.quote(str(value))}" for key, value in env.items())
        command = remote_python("launch.ssh.host_speed", str(Path.cwd()), token, address)
        try:
            text = ssh(hosts[rank], f"export {variables}; {command}", _MEASURE_SECONDS)
        except UserError as error:
            return str(error)
        lines = [line for line in text.splitlines() if line.startswith("report ")]
        return json.loads(lines[-1].removeprefix("report ")) if lines else f"{hosts[rank]}: gave no report"

    path = Path.cwd() / token
    path.touch()
    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            answers = dict(zip(hosts, pool.map(measure, range(len(hosts))), strict=True))
    finally:
        path.unlink()
    findings = [answer for answer in answers.values() if isinstance(answer, str)]
    values = {host: answer for host, answer in answers.items() if isinstance(answer, dict)}
    findings += [answer["problem"] for answer in values.values() if "problem" in answer]
    return values, findings


def _report(line: str, start: float) -> Report:
    values = json.loads(line.removeprefix("report "))
    # srun took unknown time to start the process, so only a clock that is far off can be detected.
    off = min(values["time"] - start, 0) or max(values["time"] - time.time(), 0)
    return Report(values["host"], values, values.get("problem"), off)


def _print_findings(reports: list[Report], findings: list[str]) -> int:
    table = Table(box=None, pad_edge=False)
    titles = ("host", "python", "torch", "deepspeed", "clock", "memory", "disk", "directory", "matrix")
    for title in (*titles, "link", "all-reduce", "rendezvous"):
        table.add_column(title, no_wrap=True)
    for report in reports:
        values = report.values
        versions = values.get("versions", {})
        shared = "missing" if values else ""
        if values.get("shared"):
            shared = "shared" if values.get("writable") else "read-only"
        table.add_row(
            report.host,
            *(versions.get(name, "") for name in ("python", "torch", "deepspeed")),
            f"{report.clock:+.1f} s" if values else "",
            _giga(values.get("memory"), "GB free"),
            _giga(values.get("disk"), "GB free"),
            shared,
            ", ".join(f"{speed / 1e9:,.0f} GFLOP/s" for speed in values.get("matrix", [])),
            _giga(values.get("link"), "GB/s"),
            f"{_giga(values.get('all_reduce'), 'GB/s')} {values.get('all_reduce_by', '')}".strip(),
            f"{values['rendezvous_seconds']:.1f} s" if "rendezvous_seconds" in values else "",
        )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    Console(width=max(width, 160)).print(table)
    findings = list(dict.fromkeys([*findings, *slow_hosts(reports)]))
    for line in findings:
        print(f"✗ {line}", flush=True)
    if not findings:
        print("no problems found" if len(reports) == 1 else f"no problems found on {len(reports)} hosts")
    return 1 if findings else 0


def _giga(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value / 1e9:.3g} {unit}"
