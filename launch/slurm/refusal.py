"""Which of our options sbatch refused: its own words rarely say."""

import contextlib
from typing import Any

from launch.slurm.queries import slurm
from parallel.errors import UserError

_OPTIONS = {
    "constraint": "--constraint", "gpus_per_node": "--gpus-per-node", "mem": "--mem-gb",
    "cpus_per_task": "--cpus-per-task", "nodelist": "--nodelist", "exclude": "--exclude", "qos": "--qos",
    "account": "--account", "partition": "--partition", "time": "--time", "nodes": "--nodes",
    "ntasks_per_node": "--tasks-per-node",
}  # fmt: skip
"""submitit's names and ours, the likeliest to be refused first."""
_DEFAULTS = {"time": 1, "nodes": 1, "ntasks_per_node": 1}
_OURS = ("requeue", "chdir", "dependency", "mail-user", "mail-type")


def refused_options(parameters: dict[str, Any]) -> str:
    """ "--mem-gb 9000: " if sbatch takes the job without this option; empty if no single one is to blame.

    `parameters` are submitit's. Asks `sbatch --test-only`, which submits nothing.
    """
    given = {key: parameters[key] for key in _OPTIONS if parameters.get(key) is not None}
    passed = {k: v for k, v in parameters.get("additional_parameters", {}).items() if k not in _OURS}
    for key, value in given.items():
        if _DEFAULTS.get(key) != value and _accepts({**given, key: _DEFAULTS.get(key)}, passed):
            return f"{_OPTIONS[key]} {_as_given(key, value)}: "
    for key, value in passed.items():
        if _accepts(given, {k: v for k, v in passed.items() if k != key}):
            return f"--sbatch {key}{'' if value is True else f'={value}'}: "
    return ""


def _as_given(key: str, value: Any) -> str:
    return f"{float(str(value).removesuffix('MB')) / 1024:g}" if key == "mem" else str(value)


def _accepts(given: dict[str, Any], passed: dict[str, Any]) -> bool:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items() if value is not None]
    flags += [f"--{key}" if value is True else f"--{key}={value}" for key, value in passed.items()]
    with contextlib.suppress(UserError):
        slurm("sbatch", "--test-only", *flags, "--wrap=true")
        return True
    return False
