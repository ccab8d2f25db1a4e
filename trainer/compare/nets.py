"""Turns a comparison, of one config or of several, into a study of named nets, scaled and with a budget."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from trainer.compare.sizes import parameters, scaled, training_flops
from trainer.compare.step_time import step_seconds
from trainer.config.compare import BudgetConfig, CompareConfig
from trainer.config.errors import ConfigError
from trainer.config.run import NETS, RunConfig, StudyConfig, load_config, with_values
from trainer.config.study import Member, run_members
from trainer.study import SEED, row_title

MEASURES = {"params": parameters, "flops": training_flops, "time": step_seconds}
_OWN = {
    "name",
    "run_dir",
    "seed",
    "study",
    "compare",
}  # sections in which the configs of one comparison may differ


class Net(NamedTuple):
    """A net of a comparison; `changes` are its values by key, over those of the base."""

    name: str
    config: RunConfig
    changes: dict[str, Any]


def comparison(
    paths: list[str], overrides: list[str], options: dict[str, Any], seeds: int | None
) -> RunConfig:
    """A config whose study has one net for each of the configs, or for each row of the only one's study.

    `options` replace those of the config's `compare` section. Nets are scaled, and get the
    steps of the budget. Raises UserError, before anything is trained, where the nets cannot be compared.
    """
    configs = [load_config(path, overrides) for path in paths]
    base = configs[0]
    rules = CompareConfig.model_validate((base.compare or CompareConfig()).model_dump() | options)
    nets, columns = _rows(base) if len(configs) == 1 else _files(paths, configs)
    if len(nets) < 2:
        raise ConfigError(f"{paths[0]}: one net alone; give several configs, or one with a study of them")
    _check_names(nets, rules)
    nets = _limited(_matched(nets, rules), rules.budget)
    study: StudyConfig = {NETS: {net.name: net.changes for net in nets}} | columns
    known = base.study.get(SEED) if base.study else None
    study[SEED] = list(range(seeds)) if seeds else known or list(range(3))
    name = base.name if len(configs) == 1 else "compare"
    resolved = with_values(base, {"study": None, "compare": None, "name": name})
    return resolved.model_copy(update={"study": study})


def _rows(base: RunConfig) -> tuple[list[Net], StudyConfig]:
    """The nets of one config's study, and its axes that choose a column of the table."""
    if not base.study:
        return [Net(base.name, base, {})], {}
    shown = base.build_source().shown_in_columns
    columns: StudyConfig = {key: values for key, values in base.study.items() if key in shown}
    rows = {key: values for key, values in base.study.items() if key not in (*shown, SEED)}
    if not rows:
        return [Net(base.name, base, {})], columns
    plain = base.model_copy(update={"compare": None, "study": rows})
    named = rows.get(NETS)
    nets = []
    for member in run_members(plain):
        changes = {key: value for key, value in member.values.items() if key != NETS}
        own = named[member.values[NETS]] if isinstance(named, dict) else {}
        nets.append(Net(row_title(member, shown), member.config, own | changes))
    return nets, columns


def _files(paths: list[str], configs: list[RunConfig]) -> tuple[list[Net], StudyConfig]:
    """A net for each file; in what is not the net, all files must agree."""
    base, columns = configs[0], dict[str, Any]()
    for path, config in zip(paths, configs, strict=True):
        own = {key: values for key, values in (config.study or {}).items() if key != SEED}
        if path == paths[0]:
            columns = own
        if own != columns or not set(own) <= set(config.build_source().shown_in_columns):
            raise ConfigError(f"{path}: study={own}: has nets of its own; compare this config by itself")
        for key in ("batch", "steps"):
            here, there = getattr(config.train, key), getattr(base.train, key)
            if here != there and not (key == "steps" and base.compare and base.compare.budget):
                raise ConfigError(
                    f"train.{key}: {path} has {here}, {paths[0]} {there}; give one train.{key}=… for all"
                )
    nets = []
    for config in configs:
        values, first = (
            each.model_dump(mode="json", exclude=_OWN, exclude_unset=True) for each in (config, base)
        )
        changes = {key: value for key, value in values.items() if value != first.get(key)}
        nets.append(Net(config.name, config, changes))
    return nets, columns


def _check_names(nets: list[Net], rules: CompareConfig) -> None:
    names = [net.name for net in nets]
    if len(set(names)) < len(names):
        raise ConfigError(f"names: {', '.join(names)}: two nets have one name; give the configs a `name`")
    for key, wanted in [("reference", [rules.reference or names[0]]), ("keep", rules.keep)]:
        for name in wanted:
            if name not in names:
                raise ConfigError(f"compare.{key}={name}: no net has this name; they are {', '.join(names)}")


def _matched(nets: list[Net], rules: CompareConfig) -> list[Net]:
    if rules.match is None:
        return nets
    measure = MEASURES[rules.match]
    reference = next((net for net in nets if net.name == rules.reference), nets[0])
    target = measure(reference.config)
    found = []
    for net in nets:
        values = (
            {}
            if net.name in (reference.name, *rules.keep)
            else scaled(net.config, target, measure, rules.scale)
        )
        found.append(_changed(net, values))
    return found


def _limited(nets: list[Net], budget: BudgetConfig | None) -> list[Net]:
    if budget is None:
        return nets
    return [_changed(net, {"train.steps": _steps(net.config, budget)}) for net in nets]


def _steps(config: RunConfig, budget: BudgetConfig) -> int:
    """The steps that the budget allows, at least one."""
    if budget.steps:
        return budget.steps
    batch = config.train.batch
    if budget.samples:
        return max(1, budget.samples // batch)
    if budget.flops:
        return max(1, math.floor(budget.flops / (batch * training_flops(config))))
    assert budget.seconds
    return max(1, math.floor(budget.seconds / step_seconds(config)))


def _changed(net: Net, values: dict[str, Any]) -> Net:
    return Net(net.name, with_values(net.config, values), net.changes | values) if values else net


def describe(members: list[Member]) -> list[str]:
    """A line for each net: its size, FLOPs and steps."""
    lines = {}
    for member in members:
        config, model = member.config, member.config.model
        name = str(member.values.get(NETS))
        size = f"width {model.width}, depth {model.depth}, feed-forward {model.mlp}"
        count, flops = parameters(config), training_flops(config)
        lines[name] = (
            f"{name}: {size}; {count:,.0f} parameters, {flops / 1e6:,.1f} MFLOP a sample, "
            f"{config.train.steps:,} steps"
        )
    return list(lines.values())
