"""`srun … python -m launch.ssh.host_speed … | python -m launch.slurm.job.check_hosts RUN NODES`.

A job's last step before training: reads a report of each node and prints what is wrong with them. Exits
with 2 where training would fail: a node lacks a GPU, has another version or cannot write into the run
directory; with 3 where a node gave no report, for it may be lost. A slow node, or a clock that is off, is a
warning.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from launch.slurm.runs.job_record import SUBMITTED_CONFIG, read_record
from launch.ssh.doctor import slow_hosts
from launch.ssh.hostfile import Report, differences, missing_gpus, wrong_clocks


class Findings(NamedTuple):
    """Lines about the nodes of a job: `errors` would end training, `missing` may be of a lost node."""

    errors: list[str]
    missing: list[str]
    warnings: list[str]


def check_reports(lines: Iterable[str], run: Path, nodes: int, gpus: int | None) -> Findings:
    """What is wrong with the nodes, by the output of launch.ssh.host_speed on each of them."""
    reports, others = [], [""]
    for line in lines:
        if line.startswith("report "):
            values = json.loads(line.removeprefix("report "))
            reports.append(Report(values["host"], values, values.get("problem"), 0.0))
        else:
            others += [line.strip()] if line.strip() else []
    missing = []
    if len(reports) < nodes:
        missing.append(f"{nodes - len(reports)} of {nodes} nodes gave no report: {others[-1]}")
    newest = max((report.values["time"] for report in reports), default=0.0)
    clocks = [report._replace(clock=report.values["time"] - newest) for report in reports]
    errors = differences(reports, run) + missing_gpus(reports, gpus)
    return Findings(errors, missing, slow_hosts(reports) + wrong_clocks(clocks))


def main(run: Path, nodes: int) -> int:
    """Print the findings; returns the exit code."""
    from trainer.config.run import load_config

    record = read_record(run)
    gpus = record.allocation.get("gpus_per_node")
    if gpus and load_config(run / SUBMITTED_CONFIG, []).device == "cpu":
        gpus = None  # asked for, and not to be used
    found = check_reports(sys.stdin, run, nodes, gpus)
    for line in found.warnings:
        print(f"warning: {line}", flush=True)
    for line in found.errors + found.missing:
        print(f"error: {line}", flush=True)
    return 2 if found.errors else 3 if found.missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
