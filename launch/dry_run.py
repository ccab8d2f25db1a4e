"""`translution train --dry-run`: everything is checked and planned, nothing is started or written."""

import os
from pathlib import Path

from parallel.errors import UserError
from parallel.planner.plan import layer_kinds, plan
from trainer.config.run import RunConfig
from trainer.run_directory.run_directory import RunDirectory, new_run_path
from trainer.setup import check_net, refuse_directory, set_up


def dry_run(config_path: str | None, overrides: list[str], resume: Path | None, processes: int) -> None:
    """Print what the run would train, on how much memory, and where; raises UserError as training would."""
    setup = set_up(config_path, overrides, resume, processes)
    config = setup.config
    path = resume or config.run_dir or new_run_path(config.name)
    refuse_directory(setup, RunDirectory(path), resume is not None)
    if resume is None:
        _check_writable(path)
    nets = "one net" if len(setup.members) == 1 else f"{len(setup.members)} nets"
    print(f"{config.name}: {nets} of {config.train.steps:,} steps, on {setup.device.type} × {processes}")
    members: dict[str, list[str]] = {}
    for member in setup.members:
        members.setdefault(_planned(member.config, processes, setup.device.type == "cpu"), []).append(
            member.config.name
        )
    for line, names in members.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"  {names[0]}{more}: {line}")
    print(f"run directory: {path}, {'to resume' if resume else 'new'}")
    print("dry run: nothing was started or written")


def _planned(config: RunConfig, processes: int, cpu: bool) -> str:
    mesh, train = check_net(config, processes), config.train
    own = plan(
        layer_kinds(config.model),
        config.parallel,
        mesh,
        train.batch,
        train.accumulate,
        config.precision,
        cpu,
    )
    return own.summary()


def _check_writable(path: Path) -> None:
    """Raises UserError where the run directory cannot be created."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"run_dir={path}: cannot be created: {parent} is not a folder that you may write to")
