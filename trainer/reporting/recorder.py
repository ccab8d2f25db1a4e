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
from parallel.traffic_counter import inside_collectives
from trainer.config.run import RunConfig
from trainer.data.source import Source
from trainer.reporting.clock import StepClock
from trainer.reporting.profiler import StepProfiler
from trainer.reporting.progress import Progress
from trainer.reporting.resources import Resources
from trainer.reporting.stragglers import Stragglers
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
        self.clock = StepClock(engine.device)
        self._last_step = StepClock(engine.device)  # of the last step before each log
        self._stragglers = Stragglers()
        self._profiler = StepProfiler(config.train.profile, run.profile, engine.device)
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
        self._logged = self._mark
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def restart_clock(self) -> None:
        """Leave the time since the last log out of the rate."""
        self._mark = time.perf_counter()

    @contextmanager
    def watching_step(self) -> Iterator[None]:
        """Around an optimizer step: profiles it, counts its traffic, and times its collectives, where due."""
        step = self._engine.steps_done + 1
        self._profiler.before_step(step)
        with ExitStack() as stack:
            stack.enter_context(self._resources.watch_step())
            if self._logs_after(step):
                stack.enter_context(self._last_step.phase("step"))
                stack.enter_context(inside_collectives(lambda: self._last_step.phase("collectives")))
            yield
        if line := self._profiler.after_step(step):
            self._progress.say(line)

    def _logs_after(self, step: int) -> bool:
        train = self._config.train
        return step % train.log_every == 0 or step == train.steps

    def add(self, result: StepResult) -> None:
        """Record an optimizer step; logged, with a wait for the device, every `train.log_every` steps."""
        step = self._engine.steps_done
        self._samples += self._config.train.batch
        self._pending.append((step, result))
        self._progress.advance()
        if self._logs_after(step):
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
        rows: list[dict[str, Any]] = [
            {"step": step, "samples": self._samples - (steps[-1] - step) * train.batch, "loss": loss}
            | {"grad_norm": norm, "lr": result.lr, "samples_per_second": round(rate, 1)}
            for step, result, (loss, norm) in zip(steps, results, numbers, strict=True)
        ]
        speed = self._speed(rate, now)
        rows[-1] |= speed
        self._run.append_metrics(rows)
        bad = [step for step, row in zip(steps, numbers, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise UserError(
                f"{self._run.path}: loss or gradient is not finite since step {bad[0]}; "
                f"lower train.lr={train.lr:g} or lengthen train.warmup_steps={train.warmup_steps}"
            )
        loss, norm = numbers[-1]
        lr, unit = results[-1].lr, self._source.unit
        used = f"{speed['utilisation']:.0%} of the peak"
        self._progress.show(steps[-1], f"loss {loss:.4f}  lr {lr:.2e}  {rate:,.0f} {unit}/s  {used}")
        for name, value in (
            ("train/loss", loss),
            ("train/grad_norm", norm),
            ("train/lr", lr),
            (f"train/{unit}_per_second", rate),
            (f"speed/{unit}_per_second_per_device", speed["samples_per_second_per_device"]),
            ("speed/utilisation", speed["utilisation"]),
            ("speed/peak_bytes", speed["peak_bytes"]),
            *((f"time/{phase}", share) for phase, share in speed["time"].items()),
        ):
            self._events.add_scalar(name, value, steps[-1])

    def _speed(self, rate: float, now: float) -> dict[str, Any]:
        """Collective: rate per device, utilisation, peak memory, and shares of the time since the last log.

        The share of collectives, which lie inside the other phases, is that of the last step. Names ranks for
        which the others wait.
        """
        phases, last = self.clock.take(), self._last_step.take()
        total, self._logged = max(now - self._logged, 1e-9), now
        self._data_seconds += phases.get("data", 0.0)
        shares = {phase: seconds / total for phase, seconds in phases.items()}
        if last:
            waiting = last.get("collectives", 0.0)
            shares["collectives"] = waiting / last["step"]
            for line in self._stragglers.compare(last["step"] - waiting):
                self._progress.say(line)
        return {
            "samples_per_second_per_device": round(rate / self._engine.mesh.world, 2),
            "utilisation": round(self._resources.utilisation(rate), 4),
            "peak_bytes": self._resources.peak_bytes(),
            "time": {phase: round(share, 4) for phase, share in shares.items()},
        }

    def save(self) -> None:
        """Write a checkpoint, unless this step has one; never of numbers that are not finite."""
        self.log()
        step = self._engine.steps_done
        if self._saved_step == step:
            return
        self._saved_step = step
        with self.clock.host_phase("saving"):
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
