"""One line for what pydantic finds wrong: the key, its value and what is allowed."""

import difflib
import re
import sys
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from parallel.errors import UserError


class ConfigError(UserError):
    """A config that cannot run; the message is one line."""


def explain(error: ValidationError, root: type[BaseModel], values: Any) -> str:
    """The first problem in full, and how many more there are."""
    problems = error.errors(include_url=False)
    # A misspelt key often makes another one missing: report the misspelling.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    line = _line(problems[0], root, values)
    more = len(problems) - 1
    return line + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _line(problem: ErrorDetails, root: type[BaseModel], values: Any) -> str:
    key, parent, above, classes = _locate(problem, root, values)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        valid = sorted({field.alias or name for cls in above for name, field in cls.model_fields.items()})
        close = difflib.get_close_matches(str(problem["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {_join(parent, close[0])}? " if close else ""
        allowed = f"valid here: {', '.join(valid)}" if valid else "not valid here"
        return f"unknown key {key}={_short(value)}: {hint}{allowed}"
    if kind == "model_type":
        return f"{key}={_short(value)}: must be a section of `key: value` lines"
    if kind == "missing":
        return f"{key} is missing: it must be given"
    context = problem.get("ctx", {})
    if kind == "union_tag_not_found":
        tag = str(context["discriminator"]).strip("'")
        return f"{_join(key, tag)} is missing: it must be given"
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        return f"{_join(key, tag)}={context['tag']}: must be one of {context['expected_tags']}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = " ".join(message.removeprefix("Input ").split())
    if kind == "value_error" and isinstance(value, dict):
        # A rule between fields. Its message mostly begins with one of them and that one's value.
        fields = {name for cls in classes for name in cls.model_fields} | set(value)
        if re.split(r"[=: ]", message)[0] in fields:
            return f"{key}.{message}"
        if _is_import_path(value.get("kind")):
            return f"{key}.kind={value['kind']}: {message}"
        return f"{key}: {message}"
    return f"{key}={_short(value)}: {message}"


def _locate(
    problem: ErrorDetails, root: type[BaseModel], values: Any
) -> tuple[str, str, list[type[BaseModel]], list[type[BaseModel]]]:
    """The key as the user wrote it, its parent's key, and the config classes possible at the parent and
    at the key.

    Pydantic's location also has union tags and validator names, which are not keys; those are not in
    the values. Only the last part of a location may be a key that is missing from them.
    """
    loc = problem["loc"]
    key, parent = "", ""
    classes: list[type[BaseModel]] = [root]
    above = classes
    for place, part in enumerate(loc):
        inside = isinstance(values, dict) and part in values
        inside |= isinstance(values, list) and isinstance(part, int) and part < len(values)
        absent = place == len(loc) - 1 and problem["type"] == "missing"
        if not inside and not absent:
            continue
        parent, above = key, classes
        key = f"{key}[{part}]" if isinstance(part, int) else _join(key, str(part))
        values = values[part] if inside else None  # pyright: ignore
        if isinstance(part, str):
            classes = _below(classes, part, values)
        elif isinstance(values, dict):
            classes = _of_kind(classes, values)
    return key or "config", parent, above, classes


def _below(classes: list[type[BaseModel]], field: str, value: Any) -> list[type[BaseModel]]:
    fields = [cls.model_fields[field] for cls in classes if field in cls.model_fields]
    found = [cls for info in fields for cls in models_in(info.annotation)]
    return _of_kind(found, value) if isinstance(value, dict) else found


def _of_kind(classes: list[type[BaseModel]], value: dict) -> list[type[BaseModel]]:
    """Those of `classes` that have the value's kind, else all; for an import path the class it names."""
    kind = value.get("kind")
    if _is_import_path(kind):
        module, _, name = kind.partition(":")
        cls = getattr(sys.modules.get(module), name, None)  # imported when the config was checked
        return [cls] if isinstance(cls, type) and issubclass(cls, BaseModel) else []

    def fits(cls: type[BaseModel]) -> bool:
        field = cls.model_fields.get("kind")
        return field is not None and kind in get_args(field.annotation)

    return [cls for cls in classes if fits(cls)] or classes


def _is_import_path(kind: Any) -> TypeGuard[str]:
    return isinstance(kind, str) and ":" in kind


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The config classes in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in models_in(part)]


def _join(parent: str, key: str) -> str:
    return f"{parent}.{key}" if parent else key


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."
