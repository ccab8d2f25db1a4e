"""Config sections whose `kind` is an import path: a class of the user's own beside the ones we ship."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel, ValidatorFunctionWrapHandler, WrapValidator


def by_import_path(base: type[BaseModel]) -> WrapValidator:
    """Lets a field take, besides its own kinds, `kind: package.module:Class`, a subclass of `base`."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, base):
            return value
        kind = value.get("kind") if isinstance(value, dict) else None
        if isinstance(kind, str) and ":" in kind:
            return import_config(kind, base).model_validate(value)
        section = handler(value)
        if type(section) is base:  # a field without kinds of its own
            raise ValueError(f"kind={kind}: must be an import path, as in mypackage.mymodule:MyConfig")
        return section

    return WrapValidator(validate)


def import_config(path: str, base: type[BaseModel]) -> type[BaseModel]:
    """The class at "package.module:Class"; raises ValueError, in one line, unless it is a `base`."""
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise ValueError(f"kind={path}: cannot be imported: {error}") from None
    except AttributeError:
        raise ValueError(f"kind={path}: module {module_name} has no {class_name}") from None
    except Exception as error:  # whatever the module itself does wrong
        raise ValueError(f"kind={path}: cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"kind={path}: is no {base.__name__}; derive it from {base.__module__}.{base.__name__}"
        )
    return found
