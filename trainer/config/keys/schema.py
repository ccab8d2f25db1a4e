"""JSON Schema of the config files, with which editors complete keys and check values."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from models.mixers.interface import MixerConfig
from models.parts.stems import Stem
from models.positions.interface import PositionConfig
from models.reducers.interface import ReducerConfig
from trainer.config.errors import models_in
from trainer.config.keys.meanings import key_meanings
from trainer.config.run import RunConfig

_CLASS_PATH = r"^[\w.]+:\w+$"
_OWN_CLASS = {"type": "object", "properties": {"kind": {"pattern": _CLASS_PATH}}, "required": ["kind"]}


def run_schema() -> dict[str, Any]:
    """Of a file that holds any part of a run's config, and perhaps a `base` with the rest."""
    schema = file_schema(RunConfig)
    schema["properties"]["base"] = {
        "type": "string",
        "description": "another config file, relative to this one, for values that this one does not set",
    }
    return schema


def file_schema(config: type[BaseModel]) -> dict[str, Any]:
    """Of a file that holds any part of a config."""
    classes = {cls.__name__: cls for cls in sections_of(config)}
    schema = config.model_json_schema()
    definitions = schema.pop("$defs", {})
    relaxed = _relaxed(schema, classes)
    _describe(relaxed, config)
    relaxed["$defs"] = {name: _relaxed(own, classes) for name, own in definitions.items()}
    for name, own in relaxed["$defs"].items():
        _describe(own, classes[name])
    if ReducerConfig.__name__ in definitions:  # we ship none
        relaxed["$defs"][ReducerConfig.__name__] = _OWN_CLASS
    return relaxed


def sections_of(config: type[BaseModel]) -> list[type[BaseModel]]:
    """All config classes that may stand below this one, itself first."""
    found = [config]
    for cls in found:
        below = [each for field in cls.model_fields.values() for each in models_in(field.annotation)]
        found += [each for each in dict.fromkeys(below) if each not in found]
    return found


def _describe(schema: dict[str, Any], cls: type[BaseModel]) -> None:
    aliases = {field.alias or name: name for name, field in cls.model_fields.items()}
    meanings = key_meanings(cls)
    for key, own in schema.get("properties", {}).items():
        if aliases[key] in meanings:
            own["description"] = meanings[aliases[key]]


def _relaxed(schema: Any, classes: dict[str, type[BaseModel]]) -> Any:
    """Nothing is required. Sections by kind become plain alternatives, because the kind may stand in a base;
    besides them stands what else a config takes: a class of the user's own, a name for a whole section."""
    if isinstance(schema, list):
        return [_relaxed(each, classes) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            kept[key] = {name: _relaxed(each, classes) for name, each in value.items()}
        elif key == "oneOf":
            kept["anyOf"] = value + _besides([classes[each["$ref"].rsplit("/", 1)[-1]] for each in value])
        elif key not in ("required", "discriminator", "title") and not (
            key == "default" and isinstance(value, dict)  # an editor would insert a whole section
        ):
            kept[key] = _relaxed(value, classes)
    if kept.get("$ref", "").endswith(f"/{Stem.__name__}"):
        kept = {"anyOf": [{"$ref": kept["$ref"]}, *_besides([Stem])]}
    return kept


def _besides(alternatives: list[type[BaseModel]]) -> list[dict[str, Any]]:
    names: list[Any] = []
    for cls in alternatives:
        kind = cls.model_json_schema()["properties"]["kind"]
        names += kind.get("enum") or [kind["const"]]
    if all(issubclass(cls, Stem) for cls in alternatives):
        return [{"enum": names}]
    if all(issubclass(cls, PositionConfig) for cls in alternatives):
        return [{"enum": names}, {"type": "string", "pattern": _CLASS_PATH}, _OWN_CLASS]
    return [_OWN_CLASS] if all(issubclass(cls, MixerConfig | ReducerConfig) for cls in alternatives) else []
