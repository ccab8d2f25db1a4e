"""Findings about hosts that differ, are slow, or do not share the directory."""

from pathlib import Path

from launch.ssh.doctor import slow_hosts
from launch.ssh.hostfile import Report, differences


def report(host: str, clock: float = 0.0, problem: str | None = None, **values: object) -> Report:
    usual = {"versions": {"torch": "2.13.0"}, "shared": True, "writable": True, "matrix": [1e12]}
    return Report(host, usual | values, problem, clock)


def test_identical_hosts_have_no_findings():
    reports = [report("a"), report("b", clock=1.0)]
    assert differences(reports) == []
    assert slow_hosts(reports) == []


def test_a_host_that_differs_is_named_with_both_values():
    reports = [report("a"), report("b", versions={"torch": "2.12.0"}), report("c")]
    assert differences(reports) == ["b: has torch 2.12.0, a has 2.13.0"]


def test_wrong_clock_missing_directory_and_no_answer_are_named():
    reports = [report("a", shared=False), report("b", writable=False), report("c", clock=-60.0)]
    assert differences([*reports, report("d", problem="d: did not answer within 40 s")]) == [
        "d: did not answer within 40 s",
        f"a: does not share the directory {Path.cwd()}",
        f"b: cannot write into {Path.cwd()}",
        "c: its clock is 60 s behind",
    ]


def test_a_slow_device_and_a_slow_link_are_named():
    reports = [
        report("a", matrix=[1e12, 1e12]),
        report("b", matrix=[1e12, 4e11], link=1e9),
        report("c", matrix=[1e12, 1e12], link=2e8),
        report("d", link=1e9),
    ]
    assert slow_hosts(reports) == [
        "b: its matrix products on device 1 run at 40% of the others' speed",
        "c: its network runs at 20% of the others' speed",
    ]
