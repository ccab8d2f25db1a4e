"""Weights & Biases and MLflow. A resumed run goes on in the same record; its id is in the run directory."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from trainer.atomic_write import atomic_write

_PROJECT = "translution"


class Record(NamedTuple):
    """What a service is told of a run: its directory, name, flat config, tags and note."""

    folder: Path
    name: str
    config: dict[str, str]
    tags: list[str]
    note: str | None

    def id_of(self, service: str) -> str | None:
        """The id under which an earlier start is recorded."""
        path = self._id_file(service)
        return path.read_text().strip() if path.is_file() else None

    def keep_id(self, service: str, number: str) -> None:
        atomic_write(self._id_file(service), number + "\n")

    def _id_file(self, service: str) -> Path:
        return self.folder / f"{service}.id"  # one each, since each service has a thread


class WandbLogger:
    """A run of Weights & Biases; offline, into the run directory, without WANDB_API_KEY or WANDB_MODE.

    WANDB_PROJECT names the project. `wandb sync RUN/wandb/offline-run-…` uploads an offline run.
    """

    def __init__(self, record: Record) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        number = record.id_of("wandb") or uuid.uuid4().hex[:12]
        record.keep_id("wandb", number)
        online = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=str(record.folder),
            id=number,
            resume="allow",
            name=record.name,
            config=record.config,
            tags=record.tags,
            notes=record.note,
            mode=os.environ.get("WANDB_MODE", online),
            settings=wandb.Settings(console="off", silent=True),
        )

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._run.log({name: value}, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowLogger:
    """A run of MLflow, on the server that MLFLOW_TRACKING_URI names, else in the run directory's mlflow.db.

    MLFLOW_EXPERIMENT_NAME names the experiment; `mlflow ui --backend-store-uri sqlite:///…` shows a file.
    """

    def __init__(self, record: Record) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        own = f"sqlite:///{(record.folder / 'mlflow.db').absolute()}"
        self._client: Any = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", own))
        self._id = record.id_of("mlflow") or self._begin(record)
        record.keep_id("mlflow", self._id)

    def _begin(self, record: Record) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {f"tag.{tag}": "true" for tag in record.tags}
        tags |= {"mlflow.note.content": record.note} if record.note else {}
        number = self._client.create_run(experiment, run_name=record.name, tags=tags).info.run_id
        for key, value in record.config.items():
            self._client.log_param(number, key, value[:500])
        return number

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)
