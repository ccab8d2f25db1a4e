"""The nets of a run: one, or with a `study` one per combination of its values.

A study maps keys of the config to lists of values. Its key `nets` maps names to sets of values instead:
`nets: {wide: {model.width: 96, model.mlp: 192}, narrow: {}}`.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer.config.errors import ConfigError
from trainer.config.run import NETS, RunConfig, with_values


@dataclass(frozen=True)
class Member:
    """One net of a run. `values` are what its study sets, by key, of `nets` a name; `labels` say the same in
    names."""

    config: RunConfig
    values: dict[str, Any]
    labels: list[str]

    def path(self, root: Path) -> Path:
        """The net's own run directory; `root` is that of the whole run."""
        return root / self.config.name if self.values else root

    def title(self, key: str) -> str | None:
        """The title of the config section, such as a mixer's, that the value of `key` chooses."""
        section: Any = self.config
        for part in key.removesuffix(".kind").split("."):
            section = getattr(section, part, None)
        return getattr(section, "title", None) if isinstance(section, BaseModel) else None


def run_members(config: RunConfig) -> list[Member]:
    """The nets of a run in the order of its study; raises ConfigError for one that cannot run."""
    if config.compare:
        raise ConfigError("compare: this config is a comparison of nets; give it to `translution compare`")
    study = config.study
    if not study:
        return [Member(config, {}, [])]
    axes = [list(zip(values, _labels(list(values)), strict=True)) for values in study.values()]
    members = []
    for combination in product(*axes):
        values, labels = zip(*combination, strict=True)
        by_key = dict(zip(study, values, strict=True))
        name = ",".join(_part(key, label) for key, label in zip(study, labels, strict=True))
        changes = {key: value for key, value in by_key.items() if key != NETS}
        named = study.get(NETS)
        own = named[by_key[NETS]] if isinstance(named, dict) else {}
        try:
            member = with_values(config, {"study": None, "name": name} | own | changes)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}" if own else str(error)) from None
        members.append(Member(member, by_key, list(labels)))
    for name, count in Counter(member.config.name for member in members).items():
        if count > 1:
            raise ConfigError(f"study: {count} nets would be called {name}; their values must differ in it")
    return members


def _part(key: str, label: str) -> str:
    """A value's part of a net's name."""
    if key == NETS:
        return re.sub(r"[^\w=.+-]+", "_", label)
    return f"{key.split('.')[-1]}={label}"


def _labels(values: list[Any]) -> list[str]:
    """Values as parts of names; a section, such as a mixer's, by its kind and what only it sets."""
    sections = [value for value in values if isinstance(value, dict)]
    labels = []
    for value in values:
        if not isinstance(value, dict) or "kind" not in value:
            labels.append(str(value).replace("/", "_"))
            continue
        same_kind = [section for section in sections if section.get("kind") == value["kind"]]
        own = [f"-{key}={v}" for key, v in value.items() if any(each.get(key) != v for each in same_kind)]
        labels.append(str(value["kind"]) + "".join(own).replace("/", "_"))
    return labels
