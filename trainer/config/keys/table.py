"""The page of all config keys: their defaults, what they may be, and what they mean."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from trainer.config.keys.meanings import key_meanings
from trainer.config.keys.schema import sections_of
from trainer.config.run import RunConfig

_TYPES = {
    "integer": "whole number",
    "string": "text",
    "boolean": "true, false",
    "object": "section",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def key_page() -> str:
    """Markdown, a table per section."""
    lines = [
        "# Every config key",
        "",
        "Written by `translution config --keys`; do not edit. `translution config CONFIG` shows the values",
        "of a config and where each comes from. A file's `base` names another one for what it does not set.",
    ]
    for cls in sections_of(RunConfig):
        if any(field for name, field in cls.model_fields.items() if name != "kind"):
            lines += [
                "",
                f"## {_title(cls)}",
                "",
                (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n   ", ""),
            ]
            lines += ["", "| key | default | may be | meaning |", "| --- | --- | --- | --- |", *_rows(cls)]
    return "\n".join(lines) + "\n"


def _title(cls: type[BaseModel]) -> str:
    kind = cls.model_fields.get("kind")
    name = cls.__name__.removesuffix("Config")
    return f"{name}: `kind: {kind.default}`" if kind is not None and kind.default else name


def _rows(cls: type[BaseModel]) -> list[str]:
    schema, meanings = cls.model_json_schema(), key_meanings(cls)
    rows = []
    for name, field in cls.model_fields.items():
        key = field.alias or name
        if key == "kind":
            continue
        if field.default is PydanticUndefined:
            default = "required" if field.is_required() else "empty"
        elif isinstance(field.default, BaseModel):
            default = "its own defaults"
        else:
            default = json.dumps(schema["properties"][key].get("default"), ensure_ascii=False)
        cells = [
            f"`{key}`",
            default,
            _allowed(schema["properties"][key], schema.get("$defs", {})),
            meanings.get(name, ""),
        ]
        rows.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return rows


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _allowed(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return ", ".join(dict.fromkeys(_allowed(each, definitions) for each in schema[key]))
    if "enum" in schema:
        return ", ".join(str(each) for each in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        kind = definitions[name].get("properties", {}).get("kind", {})
        return str(kind.get("const") or name.removesuffix("Config"))
    if schema.get("type") == "array":
        inside = [
            _allowed(each, definitions) for each in schema.get("prefixItems") or [schema.get("items", {})]
        ]
        return f"[{', '.join(inside if 'prefixItems' in schema else [*inside, '…'])}]"
    kind = "path" if schema.get("format") == "path" else str(schema.get("type", "any"))
    said = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_TYPES.get(kind, kind), *said])
