"""`translution compare`: trains the nets of a comparison, each in processes of its own, some at a time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from launch.local import GRACE_SECONDS, Process, passing_signals_to, start_ranks
from launch.slurm.allocation import Allocation
from launch.slurm.runs.job_record import SUBMITTED_CONFIG
from launch.slurm.runs.run_identity import Candidate, candidate_of, resolved
from launch.slurm.send import write_config
from parallel.errors import UserError
from trainer.compare.nets import comparison, describe
from trainer.config.study import Member
from trainer.errors import Interrupted
from trainer.run_directory.run_directory import RunDirectory, new_run_path
from trainer.setup import Setup, checked_setup, read_run_config
from trainer.study import is_finished, write_results

_LOG = "output.log"  # of a net


class Rules(NamedTuple):
    """Options: keys of the config's `compare` section that are replaced, and how many seeds."""

    section: dict[str, Any]
    seeds: int | None


def compare(
    configs: list[str],
    overrides: list[str],
    rules: Rules,
    out: Path | None,
    resume: Path | None,
    at_once: int,
    processes: int,
    dry_run: bool = False,
) -> None:
    """Train a new comparison, or with `resume` what an old one lacks, on this machine; see `train_nets`.

    With `dry_run` only prints the nets. Raises UserError, before anything is written, for what cannot be
    compared.
    """
    found = _open(configs, overrides, rules, out, resume, processes, dry_run)
    if not dry_run:
        train_nets(*found, at_once, processes)


def submit_comparison(
    configs: list[str],
    overrides: list[str],
    rules: Rules,
    out: Path | None,
    resume: Path | None,
    allocation: Allocation,
    at_once: int,
    dry_run: bool,
) -> None:
    """Submit the nets of a comparison to Slurm as one array, at most `at_once` of them at a time if that is
    more than one; the last to finish writes the table. Nets that were submitted before are left out."""
    from launch.slurm.submit import submit_all

    root, setup = _open(configs, overrides, rules, out, resume, allocation.processes, dry_run)
    root = root.absolute()
    found = [_candidate(member, root) for member in setup.members]
    limit = at_once if at_once > 1 else None
    submit_all(found, setup.config.name, allocation, root, True, limit, dry_run=dry_run, rehearse=False)
    if not dry_run:
        print(f"the last net to finish writes the table, as does translution compare --resume {root}")


def _candidate(member: Member, root: Path) -> Candidate:
    config = member.config.model_copy(update={"run_dir": member.path(root)})
    return candidate_of(config, member.config.name)


def _open(
    configs: list[str],
    overrides: list[str],
    rules: Rules,
    out: Path | None,
    resume: Path | None,
    processes: int,
    dry_run: bool,
) -> tuple[Path, Setup]:
    """The run directory of a comparison, and its nets, which are printed; a new one's directory is made."""
    if resume:
        if configs or overrides or rules.section or rules.seeds or out:
            raise UserError(f"--resume {resume}: trains what is missing; leave out configs and options")
        return resume, old_comparison(resume, processes)
    if not configs:
        raise UserError("no config: name one of several nets, as configs/compare/rivals.yaml, or several")
    config = comparison(configs, overrides, rules.section, rules.seeds)
    root = out or config.run_dir or new_run_path(config.name)
    setup = checked_setup(config, root, processes)
    print(*describe(setup.members), sep="\n", flush=True)
    if not dry_run:
        RunDirectory(root).create(config)
        print(f"run directory: {root}", flush=True)
    return root, setup


def old_comparison(root: Path, processes: int | None) -> Setup:
    """The comparison, or study, in `root`, checked for so many processes; raises UserError where there is
    none."""
    config = read_run_config(root, [])
    if not config.study:
        raise UserError(f"{root}: is no comparison but one net; give it to train --resume")
    return checked_setup(config, root, processes)


def write_comparison(root: Path) -> None:
    """Write and print the table of the comparison in `root`, of the nets that have finished."""
    _report(root, old_comparison(root, None))


def _report(root: Path, setup: Setup) -> None:
    write_results(RunDirectory(root), setup.config, setup.members, setup.sources).show()
    files = [name for name in ("md", "csv", "json", "png") if (root / f"results.{name}").exists()]
    print(f"written to {root}: {', '.join(f'results.{name}' for name in files)}", flush=True)


def train_nets(root: Path, setup: Setup, at_once: int, processes: int) -> None:
    """Train the nets that have not finished, `at_once` at a time on `processes` each; then write and print
    the table of all.

    A net that fails does not stop the others. Raises Interrupted after a signal, when all nets have saved,
    and UserError where a net failed.
    """
    RunDirectory(root).ownership.claim()
    waiting = [m for m in setup.members if not is_finished(RunDirectory(m.path(root)), m.config)]
    done = len(setup.members) - len(waiting)
    if done:
        print(f"{done} of {len(setup.members)} nets have finished before", flush=True)
    waiting.sort(key=lambda member: member.config.seed)  # a first seed of every net, then a second
    pool = _Pool(root, at_once, processes)
    stopped = pool.train(waiting, done, len(setup.members))
    if stopped is not None:
        raise _stopped(root, stopped)
    _report(root, setup)
    if pool.failed:
        more = f" and {len(pool.failed) - 1} more" if len(pool.failed) > 1 else ""
        raise UserError(f"{pool.failed[0]} failed{more}: see {root / pool.failed[0] / _LOG}")


def _stopped(root: Path, number: int) -> Interrupted:
    print(f"stopped; resume with: translution compare --resume {root}", flush=True)
    return Interrupted(number, 0)


@dataclass
class _Running:
    """A net in training; where one of its ranks fails, the others are killed at the deadline."""

    member: Member
    ranks: list[Process] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    deadline: float = math.inf

    def ended(self, stopping: bool) -> bool:
        """Whether all ranks have ended."""
        codes = [rank.poll() for rank in self.ranks]
        if any(codes) and not stopping and self.deadline == math.inf:
            self.deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > self.deadline:
            for rank in self.ranks:
                rank.kill()
                rank.wait()
        return None not in codes


class _Pool:
    """Trains nets in processes, so many nets at a time."""

    def __init__(self, root: Path, at_once: int, processes: int) -> None:
        self._root, self._at_once, self._processes = root, at_once, processes
        self._alive: list[Process] = []
        self.failed: list[str] = []

    def train(self, waiting: list[Member], done: int, total: int) -> int | None:
        """Train all; returns the signal that stopped it."""
        running: list[_Running] = []
        with passing_signals_to(self._alive) as seen:
            while (waiting and not seen) or running:
                while waiting and not seen and len(running) < self._at_once:
                    running.append(self._start(waiting.pop(0)))
                time.sleep(0.1)
                for each in [each for each in running if each.ended(bool(seen))]:
                    running.remove(each)
                    done += 1
                    self._finish(each, f"{done} of {total}", bool(seen))
            return seen[0] if seen else None

    def _start(self, member: Member) -> _Running:
        path = member.path(self._root)
        path.mkdir(exist_ok=True)
        write_config(path, resolved(member.config))
        net = _Running(member)
        arguments = [str(path / SUBMITTED_CONFIG), f"run_dir={path}", "--requeued"]
        start_ranks(arguments, self._processes, net.ranks, path / _LOG, self._at_once)
        self._alive += net.ranks
        return net

    def _finish(self, net: _Running, place: str, stopping: bool) -> None:
        for rank in net.ranks:
            self._alive.remove(rank)
        name, seconds = net.member.config.name, time.monotonic() - net.since
        result = RunDirectory(net.member.path(self._root)).read_result()
        if any(rank.returncode for rank in net.ranks) or result is None:
            if not stopping:
                self.failed.append(name)
                print(f"{name}: failed after {seconds:.0f} s", flush=True)
            return
        metrics = next(iter(result["evaluation"].values()))
        figures = "  ".join(f"{metric} {value:.2f}" for metric, value in metrics.items())
        print(f"{place}  {name}  {seconds:.0f} s  {figures}", flush=True)
