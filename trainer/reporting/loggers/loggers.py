"""The loggers of a run, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from parallel.processes import rank
from trainer.config.run import RunConfig, flat_values
from trainer.reporting.loggers.background import Background, Logger
from trainer.reporting.loggers.services import MlflowLogger, Record, WandbLogger
from trainer.reporting.loggers.tensorboard import Events
from trainer.run_directory.run_directory import RunDirectory

_SERVICES: dict[str, Callable[[Record], Logger]] = {"wandb": WandbLogger, "mlflow": MlflowLogger}


class Loggers:
    """Sends scalars of rank 0 to what `train.loggers` names, from step `first` on; a context.

    `say` is told in a line of a service that fails.
    """

    def __init__(self, config: RunConfig, run: RunDirectory, first: int, say: Callable[[str], None]) -> None:
        names = list(dict.fromkeys(config.train.loggers)) if rank() == 0 else []
        self._events = Events(run.events, first) if "tensorboard" in names else None
        record = Record(run.path, config.name, flat_values(config), config.tags, config.note)
        self._services = [
            Background(name, lambda build=_SERVICES[name]: build(record), say)
            for name in names
            if name in _SERVICES
        ]

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()
        for service in self._services:
            service.close()

    def restart(self, first: int) -> None:
        """Purge TensorBoard's scalars from step `first` on; the services keep both."""
        if self._events is not None:
            self._events.restart(first)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if self._events is not None:
            self._events.add_scalar(name, value, step)
        for service in self._services:
            service.add_scalar(name, value, step)

    def add_pictures(self, pictures: Iterable[tuple[str, bytes]], step: int) -> None:
        """Add (name, PNG file) to TensorBoard's events."""
        if self._events is not None:
            for name, png in pictures:
                self._events.add_picture(name, png, step)
