"""Ends a run that makes no progress, and says which rank the others wait for, and where it is."""

import faulthandler
import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from parallel.processes import rank, run_on_first_rank, world_size
from trainer.faults.fault_log import note_fault
from trainer.faults.hang_report import Report, describe_hang, flight_record, own_report

_EXIT_SECONDS = 20.0  # that a report may take, should the file system be what hangs


class Watchdog:
    """A thread beside the training thread; after `seconds` without `at` it writes a report and ends the
    process with code 1. All ranks make the same calls.

    The ranks' stacks and a summary go to `hangs/` in the run directory. The first rank to notice makes its
    folder there, by which the others learn of it, so each of them reports what it is doing at that moment.

    seconds   None: never
    """

    def __init__(self, seconds: float | None, run_dir: Path) -> None:
        self._seconds, self._run_dir = seconds, run_dir
        self._limit, self._mark = seconds or 0.0, time.monotonic()
        self._step, self._doing = 0, "starting"
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds is None:
            return self
        self._trained = threading.get_ident()
        self._poll = min(10.0, self._seconds / 20)
        self._folder = self._run_dir / "hangs" / run_on_first_rank(lambda: time.strftime("%Y%m%d-%H%M%S"))
        self.at("starting")
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seconds is not None and error and self._folder.exists():
            # A rank that ended for this hang looks lost from here: the report says it better.
            threading.Event().wait(_EXIT_SECONDS)
        self._over.set()
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def at(self, doing: str, step: int | None = None, more: float = 0.0) -> None:
        """Training has come to here, and may take `more` seconds than usual for what comes next."""
        if self._seconds is None:
            return
        self._doing, self._step = doing, self._step if step is None else step
        self._limit, self._mark = self._seconds + more, time.monotonic()
        # Should the training thread keep the interpreter from running this class's thread.
        faulthandler.dump_traceback_later(self._limit + self._poll + _EXIT_SECONDS, exit=True, file=2)

    def _watch(self) -> None:
        while not self._over.wait(self._poll):
            if time.monotonic() - self._mark > self._limit or self._folder.exists():
                self._end_run()

    def _end_run(self) -> None:
        end = threading.Timer(_EXIT_SECONDS, os._exit, [1])
        end.daemon = True
        end.start()
        silent = time.monotonic() - self._mark
        with suppress(OSError):
            self._write_report(silent)
            reports = self._wait_for_reports()
            if min(reports) == rank():
                self._sum_up(reports, silent)
            else:  # so that the launcher ends the job only when the summary is there
                self._wait_until((self._folder / "summary.txt").exists)
        os._exit(1)

    def _write_report(self, silent: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{rank()}.txt").open("w") as file:
            print(f"rank {rank()}, {self._doing}, no progress for {silent:.0f} s", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        if record := flight_record():
            (self._folder / f"collectives-{rank()}.json").write_bytes(record)
        own = own_report(self._trained, rank(), self._step, self._doing)
        unfinished = self._folder / f".rank-{rank()}"
        unfinished.write_text(json.dumps(own._asdict()))
        unfinished.replace(self._folder / f"rank-{rank()}.json")

    def _wait_for_reports(self) -> dict[int, Report]:
        self._wait_until(lambda: len(list(self._folder.glob("rank-*.json"))) == world_size())
        texts = [path.read_text() for path in self._folder.glob("rank-*.json")]
        return {report.rank: report for report in (Report(**json.loads(text)) for text in texts)}

    def _wait_until(self, done) -> None:
        end = time.monotonic() + min(2 * self._poll + 1, _EXIT_SECONDS / 3)
        while not done() and time.monotonic() < end:
            time.sleep(0.05)

    def _sum_up(self, reports: dict[int, Report], silent: float) -> None:
        what = describe_hang(reports, world_size())
        line = f"no progress for {silent:.0f} s: {what}; stacks of all ranks: {self._folder}"
        print(f"error: {line}", file=sys.stderr, flush=True)
        note_fault(self._run_dir, "hang", step=self._step, what=what, folder=str(self._folder))
        (self._folder / "summary.txt").write_text(f"{line}\n")
