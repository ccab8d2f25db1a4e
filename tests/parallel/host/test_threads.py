"""Every way to start a process sets how OpenMP's threads wait before torch loads libgomp."""

import os
import re
import subprocess
import sys

import pytest

from parallel.host.threads import SPIN_COUNT

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
LOADER_WORKER = """
import multiprocessing, trainer
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=__import__, args=("torch",))
    process.start()
    process.join()
"""


def spin_counts(*arguments: str, **variables: str) -> list[int]:
    """What libgomp reports in each process that a Python command starts."""
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=env | variables | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if not found:
        pytest.skip("torch uses another OpenMP than libgomp here")
    return [int(count) for count in found]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "trainer", "configs/debug.yaml", "train.steps=-1"),
        ("-c", "from launch.cli import main; main()", "train", "configs/debug.yaml", "train.steps=-1"),
        ("-c", "import tests.conftest"),
    ],
    ids=["trainer", "translution", "tests"],
)
def test_threads_spin_briefly_in_every_command(arguments):
    assert spin_counts(*arguments) == [SPIN_COUNT]


def test_threads_spin_briefly_in_a_spawned_worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(LOADER_WORKER)
    assert spin_counts(str(script), PYTHONPATH=os.getcwd()) == [SPIN_COUNT]


@pytest.mark.parametrize(
    ("variables", "expected"), [({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "passive"}, 0)]
)
def test_what_the_user_has_set_stays(variables, expected):
    assert spin_counts("-c", "import trainer, torch", **variables) == [expected]


def test_the_number_of_threads_is_left_to_openmp_and_the_user():
    variables = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    code = "import os, trainer; print(os.environ.get('OMP_NUM_THREADS'))"
    for given, expected in (({}, "None"), ({"OMP_NUM_THREADS": "3"}, "3")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables | given, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == expected


def test_models_as_a_library_leave_the_environment_alone():
    assert spin_counts("-c", "import models") == [300_000]
