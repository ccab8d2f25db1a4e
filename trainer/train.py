"""The training loop of one net, from a fresh or resumed start to its result."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from models import ModelConfig, build_model
from parallel.engine import build
from parallel.engine.torch_engine import Engine, StepResult
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig, mesh_of
from parallel.processes import own_device, rank, world_size
from parallel.sharding.layout import shards
from trainer.config.errors import ConfigError
from trainer.config.run import RunConfig
from trainer.data.sampling import Stream, random_bits
from trainer.data.source import Batch, Source
from trainer.errors import Interrupted
from trainer.evaluation import evaluate
from trainer.reporting.progress import PlainProgress, TerminalProgress, open_progress
from trainer.reporting.resources import Resources
from trainer.reporting.tensorboard import Events
from trainer.run_directory.checkpoints import checkpoints, load_into, save_checkpoint
from trainer.run_directory.run_directory import RunDirectory
from trainer.signals import StopRequest


def pick_device(config: RunConfig) -> torch.device:
    """The device asked for; raises UserError when there is none such."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine has no usable CUDA device; use device=cpu")
    return torch.device("cpu") if config.device == "cpu" else own_device()


def build_engine(config: RunConfig, mesh: Mesh | None = None) -> Engine:
    """This process's part of the config's net, with seeded weights and its optimizer.

    Without a mesh it is the whole net in this process alone, whatever the config's `parallel` says.
    """
    return build.build_engine(
        config.model,
        config.train,
        config.parallel if mesh else ParallelConfig(),
        mesh or Mesh(),
        pick_device(config),
        precision=config.precision,
        seed=config.seed,
        batch=config.train.batch,
        accumulate=config.train.accumulate,
    )


def check_net(config: RunConfig, world: int | None = None) -> None:
    """Raise UserError when the net cannot be built, does not divide over its mesh, or not be trained so.

    `world` is the number of processes that will train it; by default those there are.
    """
    mesh = mesh_of(config.parallel, world or world_size())
    config.parallel.check_precision(config.precision)
    per_step = config.train.accumulate * mesh.data
    if config.train.batch % per_step:
        raise ConfigError(
            f"train.batch={config.train.batch} is not divisible by train.accumulate="
            f"{config.train.accumulate} × {mesh.data} data ranks"
        )
    try:
        with torch.device("meta"):
            shards(build_model(config.model), mesh)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def restore(engine: Engine, run: RunDirectory, net: ModelConfig) -> int:
    """Load the newest checkpoint of `run`; returns the number of samples consumed until then.

    Raises UserError when there is none, or when it is of another net.
    """
    saved = checkpoints(run.checkpoints)
    if not saved:
        raise UserError(f"{run.path}: holds no checkpoint to resume from; start it without --resume")
    return load_into(engine, saved[-1], net)


class Loop:
    """Feeds an engine, and writes what comes of it into the run's directory."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        source: Source,
        engine: Engine,
        samples: int,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.run = run
        self.source = source
        self.engine = engine
        self.samples = samples
        self.stop = stop
        self.pending: list[tuple[int, StepResult]] = []
        self.seconds = self.data_seconds = 0.0
        self.trained = 0
        self._saved = engine.steps_done if samples else -1
        self._mark = time.perf_counter()
        self.evaluation: dict[str, dict[str, float]] = {}
        self.resources = Resources(config, engine.mesh, engine.device)

    def fit(self, label: str) -> dict[str, Any]:
        """Train to the last step, evaluate, and return (and write) the result.

        Raises Interrupted after saving when `stop` is requested, UserError when the loss is no
        longer finite or something cannot be written.
        """
        train, engine = self.config.train, self.engine
        batches = self.source.train_batches(
            self.samples, train.batch, train.accumulate, engine.mesh.data_rank, engine.mesh.data
        )
        progress = open_progress(label, self.source.unit, engine.steps_done, train.steps, train.batch)
        events = Events(self.run.events, engine.steps_done + 1)
        with progress, events:
            if self.samples and self._due(train.evaluate_every):
                self._evaluate(progress, events)  # the one that belongs to the checkpoint's step
            self._mark = time.perf_counter()
            while engine.steps_done < train.steps and not self.stop.agree():
                self._step(batches)
                progress.advance()
                step = engine.steps_done
                if step % train.log_every == 0 or step == train.steps:
                    self._log(progress, events)
                if self._due(train.checkpoint_every):
                    self._save(progress, events)
                if self._due(train.evaluate_every):
                    self._evaluate(progress, events)
            self._save(progress, events)
            if not self.stop.number:
                self._evaluate(progress, events)
            if self.stop.number:
                raise Interrupted(self.stop.number, engine.steps_done)
        return self._result()

    def _due(self, every: int | None) -> bool:
        done = self.engine.steps_done
        return every is not None and done % every == 0 and done < self.config.train.steps

    def _step(self, batches: Iterator[Batch]) -> None:
        engine, train = self.engine, self.config.train
        # Dropout depends on the step alone, so that neither a resume nor an evaluation changes it.
        counter = np.array([engine.steps_done * engine.mesh.data + engine.mesh.data_rank])
        torch.manual_seed(int(random_bits(self.config.seed, Stream.DROPOUT, counter)[0] >> 1))
        with self.resources.watched():
            result = engine.step(self._timed(batches), train.accumulate, self.source.task.loss)
        self.samples += train.batch
        self.trained += train.batch
        self.pending.append((engine.steps_done, result))

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for _ in range(self.config.train.accumulate):
            start = time.perf_counter()
            batch = self.source.on_device(next(batches).to(self.engine.device), training=True)
            self.data_seconds += time.perf_counter() - start
            yield batch

    def _log(self, progress: TerminalProgress | PlainProgress, events: Events) -> None:
        """Wait for the device, then write every pending step's numbers."""
        if not self.pending:
            return
        steps, results = zip(*self.pending, strict=True)
        numbers = torch.stack([torch.stack((r.loss, r.grad_norm)) for r in results]).tolist()
        now = time.perf_counter()
        elapsed, self._mark = now - self._mark, now
        self.seconds += elapsed
        batch = self.config.train.batch
        rate = len(steps) * batch / elapsed
        self.run.append_metrics(
            [
                {"step": step, "samples": self.samples - (steps[-1] - step) * batch, "loss": loss}
                | {"grad_norm": norm, "lr": result.lr, "samples_per_second": round(rate, 1)}
                for step, result, (loss, norm) in zip(steps, results, numbers, strict=True)
            ]
        )
        self.pending.clear()
        bad = [step for step, row in zip(steps, numbers, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise UserError(
                f"{self.run.path}: loss or gradient is not finite since step {bad[0]}; "
                f"lower train.lr={self.config.train.lr:g} or lengthen "
                f"train.warmup_steps={self.config.train.warmup_steps}"
            )
        loss, norm = numbers[-1]
        progress.show(steps[-1], loss, results[-1].lr, rate)
        for name, value in (
            ("train/loss", loss),
            ("train/grad_norm", norm),
            ("train/lr", results[-1].lr),
            (f"train/{self.source.unit}_per_second", rate),
        ):
            events.add_scalar(name, value, steps[-1])

    def _save(self, progress: TerminalProgress | PlainProgress, events: Events) -> None:
        self._log(progress, events)  # which refuses to go on from numbers that are not finite
        if self._saved == self.engine.steps_done:
            return
        self._saved = self.engine.steps_done
        state = {"engine": self.engine.state(), "samples": self.samples}
        keep = self.config.train.keep_checkpoints
        start = time.perf_counter()
        path = save_checkpoint(
            self.run.checkpoints, self.engine.steps_done, state, keep, self.run.fence.check, self.engine.mesh
        )
        self._mark = time.perf_counter()
        if rank() == 0:
            size = sum(part.stat().st_size for part in path.parent.glob(f"{path.stem}.*"))
            self.run.append_save(self.engine.steps_done, self._mark - start, size)

    def _evaluate(self, progress: TerminalProgress | PlainProgress, events: Events) -> None:
        self._log(progress, events)
        step = self.engine.steps_done
        batch = self.config.train.evaluate_batch
        self.evaluation = evaluate(self.engine, self.source, batch, self.stop)
        if self.evaluation and not self.stop.number:
            self.run.append_metrics([{"step": step, "evaluation": self.evaluation}])
        for name, measures in self.evaluation.items():
            title = self.source.evaluations[name]
            figures = "  ".join(f"{name} {value:.2f}" for name, value in measures.items() if name != "loss")
            progress.say(f"step {step}  {title}  {figures}")
            for measure, value in measures.items():
                events.add_scalar(f"{name}/{measure}", value, step)
        self._mark = time.perf_counter()

    def _result(self) -> dict[str, Any]:
        seconds = max(self.seconds, 1e-9)
        result = {
            "name": self.config.name,
            "step": self.engine.steps_done,
            "samples": self.samples,
            "parameters": self.engine.parameters,
            "seconds": round(self.seconds, 3),
            f"{self.source.unit}_per_second": round(self.trained / seconds, 1),
            "data_share": round(self.data_seconds / seconds, 4),
            "evaluation": self.evaluation,
            **self.resources.result(),
        }
        self.run.save_result(result)
        return result


def train_net(
    config: RunConfig, run: RunDirectory, source: Source, stop: StopRequest, resume: bool, mesh: Mesh
) -> dict[str, Any]:
    """Train one net in its run directory, which exists; `resume` takes its newest checkpoint."""
    run.fence.claim()
    engine = build_engine(config, mesh)
    samples = restore(engine, run, config.model) if resume else 0
    if resume:
        run.forget_after(engine.steps_done)
        run.save_config(config)
    return Loop(config, run, source, engine, samples, stop).fit(config.name)
