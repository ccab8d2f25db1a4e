"""Identifies a run by a digest of its resolved config, so that none is submitted twice."""

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from parallel.errors import UserError
from trainer.config.run import RunConfig, load_config
from trainer.config.study import run_members
from trainer.setup import check_net


class Candidate(NamedTuple):
    """A run to submit. `values` is its resolved config, `label` names it within its sweep."""

    config: RunConfig
    values: dict[str, Any]
    digest: str
    label: str


def candidates(config_path: str, overrides: list[str], sweeps: list[str], processes: int) -> list[Candidate]:
    """The config's run, or one for each combination of the `key=a,b` sweeps, each checked for `processes`.

    Raises UserError for a malformed sweep, ConfigError for an invalid run.
    """
    axes = [_axis(sweep) for sweep in sweeps]
    found: dict[str, Candidate] = {}
    for values in itertools.product(*axes):
        config = load_config(config_path, [*overrides, *(f"{key}={value}" for key, value in values)])
        if sweeps and config.run_dir:
            raise UserError(f"run_dir={config.run_dir}: each run of a sweep needs its own; leave run_dir out")
        for member in run_members(config):
            check_net(member.config, processes)
        label = ",".join(f"{key.split('.')[-1]}={value}" for key, value in values)
        candidate = candidate_of(config, label)
        found.setdefault(candidate.digest, candidate)
    return list(found.values())


def candidate_of(config: RunConfig, label: str) -> Candidate:
    """A run of a checked config."""
    values = resolved(config)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    return Candidate(config, values, digest, label)


def resolved(config: RunConfig) -> dict[str, Any]:
    """The config's values without run_dir, as the job reads them back."""
    # Each net of a study resolves its own defaults: one net's default may be unknown to another.
    explicit_only = config.study is not None
    return config.model_dump(mode="json", exclude={"run_dir"}, exclude_unset=explicit_only)


def run_path(candidate: Candidate, root: Path) -> Path:
    """The config's run_dir, else ROOT/<name>-<label>-<digest>.

    An existing directory with this digest is the same run, whatever its label.
    """
    if candidate.config.run_dir:
        return candidate.config.run_dir.absolute()
    for path in sorted(root.glob(f"*-{candidate.digest}")):
        return path.absolute()
    parts = (candidate.config.name, candidate.label, candidate.digest)
    name = "-".join(re.sub(r"[^\w=,.+-]+", "_", part) for part in parts if part)
    return (root / name).absolute()


def _axis(sweep: str) -> list[tuple[str, str]]:
    key, equals, text = sweep.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", text)]
    if not equals or not key.strip() or not all(values):
        raise UserError(f"--sweep {sweep}: expected key=value,value as in train.lr=1e-4,3e-4")
    return [(key.strip(), value) for value in values]
