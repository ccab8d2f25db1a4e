"""What `translution doctor` measures between hosts."""

from typing import Any

from launch.ssh.host_speed import measure_network
from parallel.spawn import run_processes


def measured() -> dict[str, Any]:
    values: dict[str, Any] = {}
    measure_network(values)
    return values


def test_the_all_reduce_is_measured_and_its_library_named():
    first, second = run_processes(measured, 2, seconds=60)
    for values in (first, second):
        assert values["all_reduce"] > 0
        assert values["all_reduce_by"] == "gloo"  # NCCL where there is a card
    assert "link" not in first
    assert second["link"] > 0
