"""A study: one net per combination of values, everything else alike, and one table at the end."""

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from parallel.mesh import Mesh
from parallel.processes import run_on_first_rank
from trainer.config.errors import ConfigError
from trainer.config.run import RunConfig, with_values
from trainer.data.build import build_source
from trainer.data.source import Source
from trainer.errors import Interrupted
from trainer.reporting.table import Table
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.run_directory import RunDirectory, write_whole
from trainer.signals import StopRequest
from trainer.train import train_net

_TITLES = {"translution": "Translution", "attention": "Self-attention"}


class Member:
    """One combination of a study's values: its config, and where it runs."""

    def __init__(self, config: RunConfig, values: dict[str, Any], words: list[str], root: Path) -> None:
        label = ",".join(f"{key.split('.')[-1]}={word}" for key, word in zip(values, words, strict=True))
        self.values = values
        self.words = words
        self.config = with_values(config, {"study": None, "name": label} | values)
        self.run = RunDirectory(root / label)

    def result(self) -> dict[str, Any] | None:
        """The result, when this member was trained for as many steps as its config asks."""
        result = self.run.read_result()
        return result if result and result["step"] >= self.config.train.steps else None


def study_members(config: RunConfig, root: Path) -> list[Member]:
    """All combinations in the order of the config; raises ConfigError for one that cannot run."""
    study = config.study
    if not study:
        return []
    named = [list(zip(values, _words(values), strict=True)) for values in study.values()]
    members = [
        Member(config, dict(zip(study, values, strict=True)), list(words), root)
        for values, words in (zip(*combination, strict=True) for combination in product(*named))
    ]
    for label, count in Counter(member.config.name for member in members).items():
        if count > 1:
            raise ConfigError(f"study: {count} nets would be called {label}; their values must differ in it")
    return members


def train_study(
    config: RunConfig, root: RunDirectory, members: list[Member], stop: StopRequest, mesh: Mesh
) -> Table:
    """Train every member that has no result yet; write results.json and results.md.

    A member with a checkpoint goes on from it. Raises Interrupted when `stop` is requested.
    """
    sources = [build_source(member.config) for member in members]
    for number, (member, source) in enumerate(zip(members, sources, strict=True), 1):
        heading = f"net {number} of {len(members)}: {member.config.name}"
        if run_on_first_rank(lambda member=member: member.result()):
            print(f"{heading}: finished before", flush=True)
            continue
        if stop.number:
            raise Interrupted(stop.number, 0)
        print(heading, flush=True)
        resume = run_on_first_rank(lambda member=member: _prepared(member))
        train_net(member.config, member.run, source, stop, resume, mesh)

    def finish() -> Table:
        results = [member.result() or {} for member in members]
        table = study_table(config, members, sources, results)
        root.fence.check()
        write_results(root.path, table, members, results)
        return table

    return run_on_first_rank(finish)


def _prepared(member: Member) -> bool:
    """Whether the member has a checkpoint to go on from; if not, its run directory is made (anew)."""
    if checkpoints(member.run.checkpoints):
        return True
    member.run.create(member.config, again=True)
    return False


def study_table(
    config: RunConfig, members: list[Member], sources: list[Source], results: list[dict[str, Any]]
) -> Table:
    """Rows are combinations of the values that do not name the columns; cells what was measured."""
    table = Table(f"{config.name}: {sources[0].task.title}, after {config.train.steps} steps")
    for member, source, result in zip(members, sources, results, strict=True):
        row = _row_title(member, source)
        table.put(row, "parameters", f"{result['parameters']:,}")
        for name, measures in result["evaluation"].items():
            table.put(row, source.evaluations[name], source.task.cell(measures))
    return table


def _words(values: list[Any]) -> list[str]:
    """Values as parts of names; of a section, such as a mixer's, its kind and what it has alone."""
    sections = [value for value in values if isinstance(value, dict)]
    words = []
    for value in values:
        if not isinstance(value, dict) or "kind" not in value:
            words.append(str(value).replace("/", "_"))
            continue
        kin = [section for section in sections if section.get("kind") == value["kind"]]
        own = [f"-{key}={v}" for key, v in value.items() if any(each.get(key) != v for each in kin)]
        words.append(str(value["kind"]) + "".join(own).replace("/", "_"))
    return words


def _row_title(member: Member, source: Source) -> str:
    parts = []
    for key, word in zip(member.values, member.words, strict=True):
        if key not in source.column_keys:
            kind, *own = word.split("-")
            title = " ".join([_TITLES.get(kind, kind), *own])
            parts.append(title if kind in _TITLES else f"{key.split('.')[-1]}={word}")
    return ", ".join(parts) or member.config.name


def write_results(root: Path, table: Table, members: list[Member], results: list[dict[str, Any]]) -> None:
    """Write results.json (every number) and results.md (the table) into the study's directory."""
    rows = [
        {"values": member.values, "run": member.run.path.name} | result
        for member, result in zip(members, results, strict=True)
    ]
    write_whole(root / "results.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    write_whole(root / "results.md", table.markdown())
