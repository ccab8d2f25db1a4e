"""What training leaves in its run directory: metrics, TensorBoard events, checkpoints, the result."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from parallel.engine.interface import Engine, StepResult
from parallel.errors import UserError
from parallel.processes import rank
from trainer.config.run import RunConfig
from trainer.data.source import Source
from trainer.reporting.progress import Progress
from trainer.reporting.resources import Resources
from trainer.reporting.tensorboard import Events
from trainer.run_directory.checkpoints import save_checkpoint
from trainer.run_directory.run_directory import RunDirectory


class Recorder:
    """Logs, saves and reports the training of one net; `samples` were consumed before this start.

    A context: progress and TensorBoard events are open inside it. Every rank makes the same calls.
    """

    def __init__(
        self, config: RunConfig, run: RunDirectory, source: Source, engine: Engine, samples: int
    ) -> None:
        self._config, self._run, self._source, self._engine = config, run, source, engine
        self._samples, self._samples_before = samples, samples
        self._resources = Resources(config, engine.mesh, engine.device)
        self._pending: list[tuple[int, StepResult]] = []
        self._seconds = self._data_seconds = 0.0
        self._saved_step = engine.steps_done if samples else -1
        self._evaluation: dict[str, dict[str, float]] = {}

    def __enter__(self) -> "Recorder":
        done, train = self._engine.steps_done, self._config.train
        self._progress = Progress(train.steps, done, label=self._config.name, unit="step", line_seconds=0)
        self._events = Events(self._run.events, done + 1)
        with ExitStack() as stack:
            stack.enter_context(self._progress)
            stack.enter_context(self._events)
            self._opened = stack.pop_all()
        for remark in self._resources.remarks:
            self._progress.say(remark)
        self.restart_clock()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def restart_clock(self) -> None:
        """Leave the time since the last log out of the rate."""
        self._mark = time.perf_counter()

    @contextmanager
    def timing_data(self) -> Iterator[None]:
        """Around waiting for a micro-batch."""
        start = time.perf_counter()
        yield
        self._data_seconds += time.perf_counter() - start

    @contextmanager
    def counting_traffic(self) -> Iterator[None]:
        """Around an optimizer step."""
        with self._resources.watch_step():
            yield

    def add(self, result: StepResult) -> None:
        """Record an optimizer step; logged, with a wait for the device, every `train.log_every` steps."""
        train, step = self._config.train, self._engine.steps_done
        self._samples += train.batch
        self._pending.append((step, result))
        self._progress.advance()
        if step % train.log_every == 0 or step == train.steps:
            self.log()

    def log(self) -> None:
        """Wait for the device, then write the numbers of every step not logged yet.

        Raises UserError when one of them is not finite.
        """
        if not self._pending:
            return
        steps, results = zip(*self._pending, strict=True)
        self._pending.clear()
        numbers = torch.stack([torch.stack((r.loss, r.grad_norm)) for r in results]).tolist()
        now = time.perf_counter()
        elapsed, self._mark = now - self._mark, now
        self._seconds += elapsed
        train = self._config.train
        rate = len(steps) * train.batch / elapsed
        self._run.append_metrics(
            [
                {"step": step, "samples": self._samples - (steps[-1] - step) * train.batch, "loss": loss}
                | {"grad_norm": norm, "lr": result.lr, "samples_per_second": round(rate, 1)}
                for step, result, (loss, norm) in zip(steps, results, numbers, strict=True)
            ]
        )
        bad = [step for step, row in zip(steps, numbers, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise UserError(
                f"{self._run.path}: loss or gradient is not finite since step {bad[0]}; "
                f"lower train.lr={train.lr:g} or lengthen train.warmup_steps={train.warmup_steps}"
            )
        loss, norm = numbers[-1]
        lr, unit = results[-1].lr, self._source.unit
        self._progress.show(steps[-1], f"loss {loss:.4f}  lr {lr:.2e}  {rate:,.0f} {unit}/s")
        for name, value in (
            ("train/loss", loss),
            ("train/grad_norm", norm),
            ("train/lr", lr),
            (f"train/{unit}_per_second", rate),
        ):
            self._events.add_scalar(name, value, steps[-1])

    def save(self) -> None:
        """Write a checkpoint, unless this step has one; never of numbers that are not finite."""
        self.log()
        step = self._engine.steps_done
        if self._saved_step == step:
            return
        self._saved_step = step
        state = {"engine": self._engine.state(), "samples": self._samples}
        start = time.perf_counter()
        path = save_checkpoint(
            self._run.checkpoints,
            step,
            state,
            self._config.train.keep_checkpoints,
            self._run.ownership.check,
            self._engine.mesh,
        )
        self.restart_clock()
        if rank() == 0:
            size = sum(part.stat().st_size for part in path.parent.glob(f"{path.stem}.*"))
            self._run.append_save(step, self._mark - start, size)

    def add_evaluation(self, evaluation: dict[str, dict[str, float]]) -> None:
        """Record what trainer.evaluation.evaluate returned for this step."""
        step, self._evaluation = self._engine.steps_done, evaluation
        if evaluation:
            self._run.append_metrics([{"step": step, "evaluation": evaluation}])
        for name, metrics in evaluation.items():
            title = self._source.evaluations[name]
            figures = "  ".join(f"{name} {value:.2f}" for name, value in metrics.items() if name != "loss")
            self._progress.say(f"step {step}  {title}  {figures}")
            for metric, value in metrics.items():
                self._events.add_scalar(f"{name}/{metric}", value, step)
        self.restart_clock()

    def finish(self) -> dict[str, Any]:
        """Write result.json, which marks the run as finished; returns the result."""
        seconds = max(self._seconds, 1e-9)
        trained = self._samples - self._samples_before
        origin = self._run.read_origin()
        result = {
            "name": self._config.name,
            **({"init_from": origin["file"]} if origin else {}),
            "step": self._engine.steps_done,
            "samples": self._samples,
            "parameters": self._engine.parameters,
            "seconds": round(self._seconds, 3),
            f"{self._source.unit}_per_second": round(trained / seconds, 1),
            "data_share": round(self._data_seconds / seconds, 4),
            "evaluation": self._evaluation,
            **self._resources.result(),
        }
        self._run.save_result(result)
        return result
