"""The resources to request from a cluster: defaults from a YAML file, overridden on the command line."""

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from parallel.errors import UserError

_DURATION = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")

_OWN_OPTIONS = {
    "nodes": "--nodes", "gpus-per-node": "--gpus-per-node", "ntasks-per-node": "--tasks-per-node",
    "cpus-per-task": "--cpus-per-task", "mem": "--mem-gb", "partition": "--partition", "time": "--time",
    "account": "--account", "qos": "--qos", "constraint": "--constraint", "exclude": "--exclude",
    "nodelist": "--nodelist", "signal": "--signal-delay", "array": "--sweep and --parallel",
    "dependency": "--after", "mail-user": "--notify", "mail-type": "--notify",
    "job-name": "name=…", "output": "submit itself", "error": "submit itself", "open-mode": "submit itself",
    "chdir": "submit itself", "requeue": "--max-requeues", "no-requeue": "--max-requeues 0",
    "ntasks": "--nodes and --tasks-per-node", "wrap": "submit itself",
}  # fmt: skip
"""What sets these options of sbatch."""


def minutes(text: str | int) -> int:
    """Parse a duration in Slurm's notation (90, 12:00:00, 2-00:00:00, 1-12) to minutes, rounded up."""
    match = _DURATION.fullmatch(str(text).strip())
    if not match:
        raise ValueError("expected minutes or [days-]hours:minutes:seconds, as in 90 or 12:00:00")
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"]:  # the first part is hours
        hours, mins, secs = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, mins, secs = parts
    else:
        hours, mins, secs = 0, *[*parts, 0][:2]
    total = (int(match["days"] or 0) * 24 + hours) * 60 + mins + -(-secs // 60)
    if total < 1:
        raise ValueError("must be at least one minute")
    return total


def _one_line(text: str) -> str:
    if not text or text != text.strip() or any(c in text for c in "\n\r"):
        raise ValueError("must be one line without leading or trailing spaces")
    return text


def _sbatch_option(text: str) -> str:
    key = text.lstrip("-").partition("=")[0].replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
        raise ValueError("expected an option of sbatch, as in reservation=night or exclusive")
    if key in _OWN_OPTIONS:
        raise ValueError(f"is set by {_OWN_OPTIONS[key]}")
    return key + text.lstrip("-")[len(key) :]


def _receiver(text: str) -> str:
    if not re.fullmatch(r"https?://\S+|[^@\s,]+@[^@\s,]+", text):
        raise ValueError("expected a mail address, or a webhook's URL beginning with http:// or https://")
    return text


SbatchOption = Annotated[str, AfterValidator(_sbatch_option)]
Receiver = Annotated[str, AfterValidator(_receiver)]
Minutes = Annotated[int, BeforeValidator(minutes)]
OneLine = Annotated[str, AfterValidator(_one_line)]


class Allocation(BaseModel):
    """Nodes, processes, time limit and partition of a job."""

    model_config = ConfigDict(extra="forbid")

    nodes: int = Field(1, ge=1)
    gpus_per_node: int | None = Field(None, ge=1, description="one process per GPU")
    tasks_per_node: int | None = Field(None, ge=1, description="processes per node, without GPUs")
    cpus_per_task: int | None = Field(None, ge=1)
    mem_gb: float | None = Field(None, gt=0, description="memory per node")
    partition: OneLine | None = None
    time: Minutes = 60
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = None
    exclude: OneLine | None = None
    nodelist: OneLine | None = None
    sbatch: list[SbatchOption] = Field(default_factory=list, description="other options of sbatch, key=value")
    notify: list[Receiver] = Field(default_factory=list, description="mail addresses and webhooks")
    bind: bool = Field(False, description="keep each process on the cores next to its device")
    check: bool = Field(True, description="check the hosts before each start, with several nodes or GPUs")
    container: OneLine | None = None
    setup: list[str] = Field(default_factory=list)
    signal_delay: int = Field(120, ge=10, description="seconds between signal and time limit")
    max_requeues: int = Field(10, ge=0)
    device_memory_gb: float | None = Field(None, gt=0)

    @property
    def checks_hosts(self) -> bool:
        """Whether the job checks its hosts before training: one CPU host has nothing to differ from."""
        return self.check and (self.nodes > 1 or self.gpus_per_node is not None)

    @property
    def processes_per_node(self) -> int:
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node


def read_allocation(cluster: Path | None, options: dict[str, Any]) -> Allocation:
    """The values of the YAML file `cluster`, replaced by `options`.

    Raises UserError with one line that names the key and the value.
    """
    values = _read(cluster) if cluster else {}
    # One process per GPU and a number of processes exclude each other: an option replaces the file's choice.
    for key, other in (("gpus_per_node", "tasks_per_node"), ("tasks_per_node", "gpus_per_node")):
        if key in options and other not in options:
            values.pop(other, None)
    try:
        allocation = Allocation.model_validate(values | options)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        value = problem["input"]
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if problem["type"] == "extra_forbidden":
            raise UserError(
                f"{cluster}: unknown key {key}; valid: {', '.join(Allocation.model_fields)}"
            ) from None
        raise UserError(f"{key}={value}: {message}") from None
    if allocation.gpus_per_node and allocation.tasks_per_node:
        raise UserError(
            f"gpus_per_node={allocation.gpus_per_node} and tasks_per_node={allocation.tasks_per_node}: "
            "give only one; with GPUs there is one process per GPU"
        )
    if allocation.time * 60 <= allocation.signal_delay:
        raise UserError(
            f"time={allocation.time} min is too short: the signal to save comes "
            f"signal_delay={allocation.signal_delay} s before the end; raise --time or lower --signal-delay"
        )
    return allocation


def _read(path: Path) -> dict[str, Any]:
    try:
        # Keep scalars as text: YAML 1.1 reads 24:00:00 as a base-60 number.
        values = yaml.load(path.read_text(), yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines")
    return {key: value for key, value in values.items() if value not in ("", "null")}
