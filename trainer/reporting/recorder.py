"""What training leaves in its run directory: metrics, TensorBoard events, checkpoints, the result."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor

from models.parts.net import PARTS
from parallel.engine.interface import Engine, StepResult
from parallel.errors import UserError
from parallel.processes import rank
from parallel.traffic_counter import inside_collectives
from trainer.config.run import RunConfig
from trainer.data.source import Source
from trainer.faults.fault_log import note_fault
from trainer.faults.step_numbers import StepNumbers, StepReader
from trainer.faults.watchdog import Watchdog
from trainer.reporting.clock import StepClock
from trainer.reporting.loggers.loggers import Loggers
from trainer.reporting.profiler import StepProfiler
from trainer.reporting.progress import Progress
from trainer.reporting.resources import Resources
from trainer.reporting.stragglers import Stragglers
from trainer.run_directory.run_directory import RunDirectory
from trainer.run_directory.saving import Saves
from trainer.signals import StopRequest


class Recorder:
    """Logs, saves and reports the training of one net; `samples` were consumed before this start.

    A context: progress and TensorBoard events are open inside it. Every rank makes the same calls. The
    numbers of a step are read when its successor is under way (on CUDA); then `stop` learns of the ranks'
    votes, and steps that were skipped are counted.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        source: Source,
        engine: Engine,
        samples: int,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        self._config, self._run, self._source, self._engine = config, run, source, engine
        self._stop, self.watchdog = stop, watchdog
        self.samples, self._samples_before = samples, samples
        self._reader = StepReader(engine.device)
        self._skips = self._skips_in_a_row = 0
        self._resources = Resources(config, engine.mesh, engine.device)
        self._pending: list[StepNumbers] = []
        self._part_norms: Tensor | None = None  # of the last step
        self._seconds = self._data_seconds = 0.0
        self.clock = StepClock(engine.device)
        self._last_step = StepClock(engine.device)  # of the last step before each log
        self._stragglers = Stragglers()
        self._profiler = StepProfiler(config.train.profile, run.profile, engine.device)
        newest = engine.steps_done if samples else -1
        self._saves = Saves(config, run, engine, newest, lambda line: self._progress.say(line))
        self._went_back_to = -1
        self._evaluation: dict[str, dict[str, float]] = {}

    def __enter__(self) -> "Recorder":
        done, train = self._engine.steps_done, self._config.train
        self._progress = Progress(train.steps, done, label=self._config.name, unit="step", line_seconds=0)
        self._events = Loggers(self._config, self._run, done + 1, self._progress.say)
        self.watchdog.at("starting", done)
        self._run.append_start(self._engine.mesh.world, self._engine.parameters)
        with ExitStack() as stack:
            stack.enter_context(self._progress)
            stack.enter_context(self._events)
            self._opened = stack.pop_all()
        for remark in self._resources.remarks:
            self._progress.say(remark)
        self.restart_clock()
        self._logged = self._mark
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind and issubclass(kind, UserError | SystemExit):  # on all ranks alike
            with suppress(UserError, SystemExit):
                self._saves.settle()
        self._opened.__exit__(kind, *error)

    def restart_clock(self) -> None:
        """Leave the time since the last log out of the rate."""
        self._mark = time.perf_counter()

    @contextmanager
    def timing_data(self) -> Iterator[None]:
        """Around waiting for a micro-batch."""
        self.watchdog.at("waiting for data", self._engine.steps_done)
        with self.clock.host_phase("data"):
            yield
        self.watchdog.at("computing a step")

    @contextmanager
    def watching_step(self) -> Iterator[None]:
        """Around an optimizer step: profiles it, counts its traffic, and times its collectives, where due."""
        step = self._engine.steps_done + 1
        self._profiler.before_step(step)
        self._engine.report_parts = self._config.train.logs_after(step) and not self._resources.counts_next
        with ExitStack() as stack:
            stack.enter_context(self._resources.watch_step())
            if self._config.train.logs_after(step):
                stack.enter_context(self._last_step.phase("step"))
                stack.enter_context(inside_collectives(lambda: self._last_step.phase("collectives")))
            yield
        if line := self._profiler.after_step(step):
            self._progress.say(line)

    def add(self, result: StepResult) -> None:
        """Record an optimizer step; logged, with a wait for the device, every `train.log_every` steps."""
        step = self._engine.steps_done
        self.samples += self._config.train.batch
        self._receive(self._reader.add(step, self.samples, result))
        self._part_norms = result.part_norms
        self._progress.advance()
        self._saves.take_finished()
        self._stop.save_failed = self._saves.failed
        if self._stop.any_save_failed:
            self._stop.save_failed = self._stop.any_save_failed = False
            self._saves.settle()
        if self._config.train.logs_after(step):
            self.log()

    def log(self) -> None:
        """Wait for the device, then write the numbers of every step not logged yet."""
        self._receive(self._reader.rest())
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        now = time.perf_counter()
        elapsed, self._mark = now - self._mark, now
        self._seconds += elapsed
        rate = len(rows) * self._config.train.batch / elapsed
        speed = self._speed(rate, now)
        records: list[dict[str, Any]] = [
            {"step": row.step, "samples": row.samples}
            | ({"skipped": True} if row.skipped else {"loss": row.loss, "grad_norm": row.grad_norm})
            | {"lr": row.lr, "samples_per_second": round(rate, 1)}
            for row in rows
        ]
        norms = {} if self._part_norms is None else dict(zip(PARTS, self._part_norms.tolist(), strict=True))
        records[-1] |= speed | ({"grad_norms": norms} if norms else {})
        self._run.append_metrics(records)
        last, unit = rows[-1], self._source.unit
        used = f"{speed['utilisation']:.0%} of the peak"
        figures = f"loss {last.loss:.4f}  lr {last.lr:.2e}  {rate:,.0f} {unit}/s  {used}"
        self._progress.show(last.step, figures)
        for name, value in (
            ("train/loss", last.loss),
            ("train/grad_norm", last.grad_norm),
            ("train/lr", last.lr),
            (f"train/{unit}_per_second", rate),
            (f"speed/{unit}_per_second_per_device", speed["samples_per_second_per_device"]),
            ("speed/utilisation", speed["utilisation"]),
            ("speed/peak_bytes", speed["peak_bytes"]),
            *((f"time/{phase}", share) for phase, share in speed["time"].items()),
            *((f"grad_norm/{part}", norm) for part, norm in norms.items()),
        ):
            self._events.add_scalar(name, value, last.step)

    def _receive(self, rows: list[StepNumbers]) -> None:
        """Take in the numbers of steps: votes, and whether they were skipped. The same on every rank."""
        for row in rows:
            self._pending.append(row)
            self._stop.count(row.votes)
            self._skips_in_a_row = self._skips_in_a_row + 1 if row.skipped else 0
            if row.skipped:
                self._skips += 1
                first, last = row.samples - self._config.train.batch, row.samples - 1
                self._progress.say(
                    f"step {row.step} skipped: loss {row.loss:g}, gradient norm {row.grad_norm:g}, "
                    f"samples {first} to {last}; {self._skips} skipped so far"
                )
                self._note("skipped", step=row.step, samples=[first, last])

    @property
    def must_go_back(self) -> bool:
        """Whether `train.max_skips` steps in a row were skipped: the weights themselves may be bad."""
        return self._skips_in_a_row >= self._config.train.max_skips

    def check_way_back(self) -> None:
        """Raises UserError without a checkpoint to go back to, or when going back to it did not help."""
        self.log()
        self._saves.settle()
        train, first = self._config.train, self._engine.steps_done - self._skips_in_a_row + 1
        if self._saves.step in (-1, self._went_back_to):
            tried = " again, after going back to the last checkpoint" if self._saves.step >= 0 else ""
            raise UserError(
                f"{self._run.path}: loss or gradient is not finite since step {first}{tried}; "
                f"lower train.lr={train.lr:g} or lengthen train.warmup_steps={train.warmup_steps}"
            )
        self.watchdog.at("going back to a checkpoint", more=self._saves.most_seconds)

    def went_back(self) -> None:
        """The engine has the weights of the last checkpoint again; the data goes on where it was."""
        step = self._went_back_to = self._engine.steps_done
        self._skips_in_a_row = 0
        self._run.forget_after(step, keep_evaluation=True)
        self._events.restart(step + 1)
        self._progress.say(
            f"went back to the checkpoint of step {step} after {self._config.train.max_skips} skipped steps; "
            f"goes on with sample {self.samples}"
        )
        self._note("went back", step=step, samples=self.samples)
        self.restart_clock()

    def _note(self, fault: str, **values: Any) -> None:
        if rank() == 0:
            note_fault(self._run.path, fault, **values)

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
        """Write a checkpoint, unless this step has one; in the background, but for the last.

        None is written between skipped steps, except at the end: their weights may be why they are skipped.
        """
        self.log()
        step = self._engine.steps_done
        ends = step == self._config.train.steps or self._stop.number is not None
        due = self._saves.step != step and (ends or not self._skips_in_a_row)
        if not due and not ends:
            return
        self.watchdog.at("saving a checkpoint", step, more=2 * self._saves.most_seconds)
        with self.clock.host_phase("saving"):
            if due:
                self._saves.start(self.samples)
            if ends:
                self._saves.settle()
        self.restart_clock()
        self.watchdog.at("done saving")

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

    def draw(self) -> None:
        """Add pictures of banks and attention to the TensorBoard events, without a collective."""
        from trainer.pictures.events import picture_events  # here, because Matplotlib takes long to import

        self.log()
        self._events.add_pictures(picture_events(self._engine, self._source), self._engine.steps_done)
        self.restart_clock()

    def finish(self) -> dict[str, Any]:
        """Write result.json, which marks the run as finished; returns the result."""
        seconds = max(self._seconds, 1e-9)
        trained = self.samples - self._samples_before
        origin = self._run.read_origin()
        result = {
            "name": self._config.name,
            **({"init_from": origin["file"]} if origin else {}),
            "step": self._engine.steps_done,
            "samples": self.samples,
            "parameters": self._engine.parameters,
            "seconds": round(self._seconds, 3),
            f"{self._source.unit}_per_second": round(trained / seconds, 1),
            "step_seconds": round(seconds * self._config.train.batch / max(trained, 1), 6),
            "data_share": round(self._data_seconds / seconds, 4),
            "evaluation": self._evaluation,
            **self._resources.result(),
        }
        self._run.save_result(result)
        return result
