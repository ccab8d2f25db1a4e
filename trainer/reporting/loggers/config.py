"""Where scalars go besides metrics.jsonl, and whether that is installed."""

import importlib.util
from typing import Literal

from parallel.errors import UserError

LoggerName = Literal["tensorboard", "wandb", "mlflow"]


def check_installed(names: list[LoggerName]) -> None:
    """Raises UserError for a logger whose package is missing."""
    for name in names:
        if name != "tensorboard" and not _installed(name):
            raise UserError(
                f"train.loggers={names}: {name} is not installed; pip install 'translution[{name}]'"
            )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is imported already, by hand
        return True
