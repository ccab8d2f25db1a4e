"""The check of a job's hosts before training."""

import json
from pathlib import Path

from launch.slurm.job.check_hosts import check_reports


def line(host: str, **values: object) -> str:
    usual = {"host": host, "versions": {"torch": "2.13.0"}, "time": 1000.0, "shared": True, "writable": True}
    return "report " + json.dumps(usual | {"matrix": [1e12], "gpus": 2} | values) + "\n"


def test_alike_hosts_have_no_findings():
    found = check_reports([line("a"), "[W socket] noise\n", line("b", time=1002.0)], Path("run"), 2, 2)
    assert found == ([], [], [])


def test_what_would_end_training_is_an_error_and_a_slow_host_a_warning():
    reports = [
        line("a"),
        line("b", gpus=1),
        line("c", versions={"torch": "2.12.0"}),
        line("d", writable=False),
        line("e", matrix=[4e11]),
        line("f", time=900.0),
    ]
    found = check_reports(reports, Path("run"), 6, 2)
    assert found.errors == [
        "c: has torch 2.12.0, a has 2.13.0",
        "d: cannot write into run",
        "b: torch sees 1 of 2 GPUs",
    ]
    assert found.warnings == [
        "e: its matrix products run at 40% of the others' speed",
        "f: its clock is 100 s behind",
    ]
    assert not found.missing


def test_a_node_that_gave_no_report_is_told_apart_for_it_may_be_lost():
    found = check_reports([line("a"), "srun: error: b: task 1: Killed\n"], Path("run"), 2, None)
    assert found.missing == ["1 of 2 nodes gave no report: srun: error: b: task 1: Killed"]
    assert not found.errors
