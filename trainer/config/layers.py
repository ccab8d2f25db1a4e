"""A config's values before they are checked: a file over its base, then overrides; and where each is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.errors import ConfigError

COMMAND_LINE = "command line"


class Layers(NamedTuple):
    """Plain values, and by dotted key where each comes from: a file, or COMMAND_LINE. A list is one value."""

    values: dict[Any, Any]
    origins: dict[str, str]


def read_layers(path: Path, overrides: list[str]) -> Layers:
    """The file's values over those of its `base`, and `key=value` overrides over both.

    Raises ConfigError; see `load_config`.
    """
    values, origins = dict[Any, Any](), dict[str, str]()
    for file, own in reversed(_chain(path)):
        if "study" in own:
            values.pop("study", None)
            _forget(origins, "study")
        values = _layered(values, own, str(file), origins)
    tree = OmegaConf.create(values)
    for override in overrides:
        key, value = _parsed(override)
        set_value(tree, key, value)
        _forget(origins, key)
        _note(origins, key.partition("[")[0], value, COMMAND_LINE)
    try:
        resolved = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    assert isinstance(resolved, dict)
    return Layers(resolved, origins)


def set_value(tree: DictConfig, key: str, value: Any) -> None:
    """Set a dotted key, which may index lists; raises ConfigError."""
    try:
        OmegaConf.update(tree, key, value, merge=False, force_add=True)
    except (OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"{key}={value}: cannot be set: {_first_line(error)}") from None


def _chain(path: Path) -> list[tuple[Path, dict[Any, Any]]]:
    """The file, its base, the base's base …, with the values of each."""
    chain: list[tuple[Path, dict[Any, Any]]] = []
    while True:
        own = _read_one(path)
        base = own.pop("base", None)
        chain.append((path, own))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base={base}: must be the path of another config file")
        below = path.parent / base
        if below.resolve() in {each.resolve() for each, _ in chain}:
            raise ConfigError(f"{path}: base={base}: leads back to this file")
        path = below


def _layered(
    base: dict[Any, Any], own: dict[Any, Any], file: str, origins: dict[str, str], prefix: str = ""
) -> dict[Any, Any]:
    """`own` over `base`, section by section; a section of another kind replaces the base's."""
    merged = dict(base)
    for key, value in own.items():
        below, path = base.get(key), f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(below, dict):
            kind = value.get("kind", below.get("kind"))
            if kind == below.get("kind"):
                merged[key] = _layered(below, value, file, origins, f"{path}.")
                continue
        _forget(origins, path)
        _note(origins, path, value, file)
        merged[key] = value
    return merged


def _forget(origins: dict[str, str], path: str) -> None:
    for key in [key for key in origins if key == path or key.startswith(f"{path}.")]:
        del origins[key]


def _note(origins: dict[str, str], path: str, value: Any, origin: str) -> None:
    if not isinstance(value, dict):
        origins[path] = origin
        return
    for key, each in value.items():
        _note(origins, f"{path}.{key}", each, origin)


def _read_one(path: Path) -> dict[Any, Any]:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason})") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}:{line} is not YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: is not YAML: {_first_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: holds a list, expected `key: value` lines")
    values = OmegaConf.to_container(loaded)
    assert isinstance(values, dict)
    return values


def _parsed(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, as in train.steps=600")
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])
        return key.strip(), OmegaConf.to_container(value, resolve=False)["value"]  # pyright: ignore
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {override!r}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
