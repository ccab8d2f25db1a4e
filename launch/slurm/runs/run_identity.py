"""Which run a config is: its resolved values decide, so that none is submitted twice."""

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
    """A run that could be submitted; `label` tells it from the others of its sweep."""

    config: RunConfig
    values: dict[str, Any]
    digest: str
    label: str


def candidates(config_path: str, overrides: list[str], sweeps: list[str], processes: int) -> list[Candidate]:
    """The config's run, or one for each combination of `key=a,b` sweeps; each is checked for `processes`.

    Raises UserError for a sweep that is none, and ConfigError for a run that cannot be.
    """
    axes = [_axis(sweep) for sweep in sweeps]
    found: dict[str, Candidate] = {}
    for values in itertools.product(*axes):
        config = load_config(config_path, [*overrides, *(f"{key}={value}" for key, value in values)])
        if sweeps and config.run_dir:
            raise UserError(f"run_dir={config.run_dir}: the runs of a sweep have one each; leave it out")
        for member in run_members(config):
            check_net(member.config, processes)
        plain = resolved(config)
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]
        label = ",".join(f"{key.split('.')[-1]}={value}" for key, value in values)
        found.setdefault(digest, Candidate(config, plain, digest, label))
    return list(found.values())


def resolved(config: RunConfig) -> dict[str, Any]:
    """The config's values as the job reads them again, without the place of the run."""
    # A study's nets resolve on their own: what is default for one may be unknown to another.
    given_only = config.study is not None
    return config.model_dump(mode="json", exclude={"run_dir"}, exclude_unset=given_only)


def run_path(candidate: Candidate, root: Path) -> Path:
    """The run's directory: the one named in the config, else RUNS/<name>-<label>-<digest>.

    A directory of the same digest is the same run, whatever its label.
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
