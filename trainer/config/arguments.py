"""A training command's arguments: a config file, which may be left out, and `key=value` overrides."""

import json
from pathlib import Path

from parallel.errors import UserError
from trainer.config.run import load_config

_DEBUG_STEPS = 5


def split_arguments(config: str | None, overrides: list[str]) -> tuple[str | None, list[str]]:
    """The config file and the overrides, where `config` may be the first override instead of a file."""
    if config is not None and "=" in config and not Path(config).is_file():
        return None, [config, *overrides]
    return config, overrides


def debug_overrides(config: str | None, overrides: list[str]) -> list[str]:
    """`overrides` for `--debug`: a few steps, each logged, and data loaded in the training process, where
    they do not say otherwise. Without a config a run is resumed, which keeps its number of steps."""
    given = {override.split("=")[0] for override in overrides}
    added = {"train.log_every": "1"}
    if config is not None and "train.steps" not in given:
        added = {"train.steps": str(_DEBUG_STEPS), "train.warmup_steps": "0", **added}
    debug = [f"{key}={value}" for key, value in added.items() if key not in given] + overrides
    if config is not None and "data.workers" not in given and _has_workers(config, overrides):
        debug = ["data.workers=0", *debug]
    return debug


def labels(tags: list[str], note: str | None) -> list[str]:
    """The overrides that set a run's tags and note, where they are given."""
    set_tags = [f"tags={json.dumps(tags)}"] if tags else []
    return set_tags + ([] if note is None else [f"note={json.dumps(note)}"])


def _has_workers(config: str, overrides: list[str]) -> bool:
    try:
        load_config(config, [*overrides, "data.workers=0"])
    except UserError:
        return False
    return True
