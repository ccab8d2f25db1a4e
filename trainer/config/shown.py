"""A config as people read it: YAML with the origin of every value, and the difference of two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from trainer.config.layers import read_layers
from trainer.config.run import RunConfig, flat_values, load_config, parse_config
from trainer.reporting.table import Table
from trainer.run_directory.run_directory import RunDirectory

_GAP = 2
_END = "...\n"  # of a YAML document that is a plain value
_WIDEST = 60  # a longer value's origin follows right behind it


def shown_config(path: Path, overrides: list[str]) -> str:
    """The resolved config as YAML, which is a config file itself; a comment on each line says where its value
    comes from: a file, the command line, or the default. Raises ConfigError."""
    values, origins = read_layers(path, overrides)
    if "name" not in values:
        values["name"], origins["name"] = path.stem, "name of the file"
    lines = list(_lines(parse_config(values).model_dump(mode="json"), origins))
    width = min(_WIDEST, max(len(line) for line, _ in lines))
    return "".join(
        f"{line:{width}}{' ' * _GAP}# {origin}\n" if origin else f"{line}\n" for line, origin in lines
    )


def config_difference(one: Path, other: Path) -> Table:
    """A row per key whose values differ between two config files or run directories; raises UserError."""
    pair = [_config_of(path) for path in (one, other)]
    return difference(dict(zip(map(str, (one, other)), pair, strict=True)))


def difference(configs: dict[str, RunConfig]) -> Table:
    """A row per key whose values differ, and a column per config, by its title."""
    flat = {title: flat_values(config) for title, config in configs.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    differing = [key for key in keys if len({values.get(key) for values in flat.values()}) > 1]
    table = Table(
        "the configs are equal" if not differing else f"{len(differing)} of {len(keys)} keys differ"
    )
    for key in differing:
        for title, values in flat.items():
            if key in values:
                table.put(key, title, _cut(values[key]))
    return table


def _cut(value: str) -> str:
    return value if len(value) <= _WIDEST else f"{value[: _WIDEST - 1]}…"


def _config_of(path: Path) -> RunConfig:
    return load_config(RunDirectory(path).config if path.is_dir() else path, [])


def _lines(
    values: dict[str, Any], origins: dict[str, str], path: str = "", indent: str = ""
) -> Iterator[tuple[str, str | None]]:
    """Lines of YAML, and the origin of the value on each."""
    for key, value in values.items():
        place = f"{path}{key}"
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", None
            yield from _lines(value, origins, f"{place}.", indent + "  ")
            continue
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
        yield f"{indent}{key}: {text.removesuffix(_END).strip()}", origins.get(place, "default")
