"""What each config key means: its field's description, or its line in the docstring of its section."""

from __future__ import annotations

import re

from pydantic import BaseModel

_LINE = re.compile(r"(\w+(?:, \w+)*)  +(\S.*)")
_SAME_EVERYWHERE = {
    "kind": "which of the alternatives this section is",
    "heads": "H, the number of heads",
    "head_dim": "E, the width of a head",
}


def key_meanings(section: type[BaseModel]) -> dict[str, str]:
    """By field name; fields that nothing describes are missing. A line of a docstring is `name  meaning`, or
    `name, name  meaning; meaning`, and may go on, indented, on the next."""
    found = {name: text for name, text in _SAME_EVERYWHERE.items() if name in section.model_fields}
    for cls in reversed(section.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            found |= {name: text for name, text in _documented(cls).items() if name in section.model_fields}
    for name, field in section.model_fields.items():
        if field.description:
            found[name] = " ".join(field.description.split())
    return found


def _documented(cls: type[BaseModel]) -> dict[str, str]:
    found, names = dict[str, str](), list[str]()
    for line in (cls.__dict__.get("__doc__") or "").splitlines():
        text = line.strip()
        if match := _LINE.fullmatch(text):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif text and names and len(line) - len(line.lstrip()) > 8:
            found |= {name: f"{found[name]} {text}" for name in names}
        else:
            names = []
    return found
