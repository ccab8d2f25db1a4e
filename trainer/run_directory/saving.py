"""Saves the checkpoints of a net in training: in the background, one at a time, and what is kept of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models import build_model
from parallel.checkpoint.contents import Index
from parallel.checkpoint.save import Saver
from parallel.engine.interface import Engine
from parallel.errors import UserError
from parallel.processes import raise_if_any_failed, rank
from parallel.sharding.layout import shards
from trainer.config.run import RunConfig
from trainer.errors import machine_error
from trainer.faults.fault_log import note_fault
from trainer.run_directory.checkpoints import checkpoint_path, delete_old
from trainer.run_directory.ownership import LostOwnership
from trainer.run_directory.run_directory import RunDirectory, run_versions

_SLOW_DISK = 50e6  # bytes per second; below it the watchdog takes a save for one that hangs


@dataclass
class _Save:
    step: int
    path: Path
    began: float
    stall: float = 0.0


class Saves:
    """Every rank makes the same calls, but for `take_finished` and `failed`.

    step  of the newest checkpoint, also while it is written; −1: there is none
    say   tells a person something

    most_seconds  that a save or a load should take on a slow disk
    """

    def __init__(
        self, config: RunConfig, run: RunDirectory, engine: Engine, step: int, say: Callable[[str], None]
    ) -> None:
        self._config, self._run, self._engine, self._say = config, run, engine, say
        self.step = self._good_step = step
        with torch.device("meta"):
            net = build_model(config.model)
        self._held = shards(net, engine.mesh)
        self._saver = Saver(self._held, engine.mesh, config.train.save_in_background)
        self._save: _Save | None = None
        held = sum(getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters())
        self.most_seconds = 12 * held / _SLOW_DISK  # AdamW's state in float32

    def start(self, samples: int) -> None:
        """Begin to save the engine's state; training may go on. Ends the save before first (`settle`)."""
        self.settle()
        step, mesh = self._engine.steps_done, self._engine.mesh
        index = Index(
            step=step,
            samples=samples,
            mesh={"data": mesh.data, "offset": mesh.offset, "tensor": mesh.tensor},
            parameters={name: shard.full for name, shard in self._held.items()},
            buffers={name: tuple(each.shape) for name, each in self._engine.model.named_buffers()},
            run=self._described(),
            manifests=(),
        )
        save = self._save = _Save(step, checkpoint_path(self._run.checkpoints, step), time.perf_counter())
        self._saver.start(save.path, self._engine.state(), index, self._run.ownership.check)
        self.step, save.stall = step, time.perf_counter() - save.began

    def _described(self) -> dict[str, Any]:
        """What else a person or a program may want to know of the run; the data's position and every random
        number follow from its seed, step and samples."""
        return {"config": self._config.model_dump(mode="json"), "versions": run_versions()}

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the save has failed; all ranks must `settle` then."""
        return self._saver.failed

    def take_finished(self) -> None:
        """If a save has ended well, as seen from this rank, note it and delete old checkpoints."""
        if self._saver.done and not self._saver.failed:
            self._saver.finish()
            self._note_saved()

    def settle(self) -> bool:
        """Wait for the save that is under way; returns whether it ended well, or none was.

        With `train.on_save_error=stop` raises the UserError of one that failed, on all ranks alike.
        """
        if not self._saver.writing:
            return True
        assert self._save is not None
        waits = time.perf_counter()
        try:
            self._saver.finish()
        except (OSError, UserError) as error:
            self._give_up(error)
            return False
        self._save.stall += time.perf_counter() - waits
        self._note_saved()
        return True

    def _note_saved(self) -> None:
        save, self._save = self._save, None
        assert save is not None
        self._good_step = save.step
        if rank() == 0:
            size = sum(part.stat().st_size for part in save.path.iterdir())
            seconds = self._saver.ended - save.began
            self._run.append_save(save.step, seconds, save.stall, size)
            delete_old(self._run.checkpoints, *self._kept)

    @property
    def _kept(self) -> tuple[int, int | None]:
        return self._config.train.keep_checkpoints, self._config.train.keep_every

    def _give_up(self, error: OSError | UserError) -> None:
        save, self._save = self._save, None
        assert save is not None
        self.step = self._good_step
        if isinstance(error, OSError):
            error = machine_error(error, error.filename or save.path, "write the checkpoint")
        if rank() == 0 and not isinstance(error, LostOwnership) and self._run.checkpoints.is_dir():
            delete_old(self._run.checkpoints, *self._kept)  # frees what was written of this one
        if self._config.train.on_save_error == "stop" or isinstance(error, LostOwnership):
            raise_if_any_failed(error)
        last = f"the last is of step {self.step}" if self.step >= 0 else "there is none yet"
        self._say(f"no checkpoint of step {save.step}: {error}; {last}; the run goes on")
        if rank() == 0:
            note_fault(self._run.path, "save failed", step=save.step, what=str(error))
