"""Config sections that are chosen by their `kind`: one that we ship, or a class of the user's own."""

from __future__ import annotations

import importlib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidatorFunctionWrapHandler, WrapValidator, model_validator


class Section(BaseModel):
    """A config section; the `kind` of a user's own class is its import path, package.module:Class."""

    model_config = ConfigDict(extra="forbid")

    kind: Any = ""

    @model_validator(mode="after")
    def _name_kind(self) -> Self:
        if not self.kind:
            self.kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return self


def by_import_path(base: type[Section]) -> WrapValidator:
    """Lets a field take, besides its own kinds, `kind: package.module:Class`, a subclass of `base`."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, base):
            return value
        kind = value.get("kind") if isinstance(value, dict) else None
        if isinstance(kind, str) and ":" in kind:
            section = import_section(kind, base).model_validate(value)
            try:
                section.model_dump_json()
            except ValueError as error:
                raise ValueError(f"kind={kind}: cannot be written to a config file: {error}") from None
            return section
        section = handler(value)
        if type(section) is base:  # a field without kinds of its own
            raise ValueError(f"kind={kind}: must be an import path, as in mypackage.mymodule:MyConfig")
        return section

    return WrapValidator(validate)


def import_section(path: str, base: type[Section]) -> type[Section]:
    """The class at "package.module:Class"; raises ValueError, in one line, unless it is a `base`."""
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module itself does wrong
        why = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, ModuleNotFoundError):
            why += "; install its package or put its folder on PYTHONPATH"
        raise ValueError(f"kind={path}: cannot be imported: {why}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ValueError(f"kind={path}: module {module_name} has no {class_name}")
    if not (isinstance(found, type) and issubclass(found, base) and found is not base):
        wanted = f"{base.__module__}.{base.__name__}"
        raise ValueError(f"kind={path}: is no {base.__name__}; derive it from {wanted}")
    return found
