"""What each task of a Slurm job does: meet the others, train, and note how it ended."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from launch.rendezvous import check_port, rendezvous
from launch.slurm.runs.job_record import SUBMITTED, job_id, note, read_facts, restart_count
from parallel.errors import UserError

_WARNINGS = (signal.SIGUSR2, signal.SIGTERM)


class TrainTask:
    """The callable that submitit pickles: one run, and the words of its training command."""

    def __init__(self, run: Path, words: list[str]) -> None:
        self._run = str(run)  # a pickled Path cannot be read by another version of Python
        self.words = words

    @property
    def run(self) -> Path:
        return Path(self._run)

    def __call__(self) -> int:
        """Train. Every rank returns when the run has finished or stopped for a signal.

        Any other end exits with a code that is not zero, at which srun ends the other ranks.
        """
        self._listen()
        try:
            facts = read_facts(self.run)
            env = rendezvous()
            os.environ |= env | {"TRANSLUTION_START_TOKEN": f"job {job_id()}, start {restart_count()}"}
            if self._first:
                note(self.run, "start", nodes=os.environ["SLURM_JOB_NODELIST"])
                if int(env["WORLD_SIZE"]) > 1:
                    check_port(env["MASTER_ADDR"], int(env["MASTER_PORT"]))
            limit = facts.allocation["max_requeues"]
            if restart_count() > limit:
                raise UserError(
                    f"{self.run}: Slurm has started job {job_id()} again {restart_count()} times, "
                    f"max_requeues={limit}; go on with: translution resume {self.run}"
                )
        except UserError as error:
            self._refuse(f"error: {error}")
        from trainer.__main__ import main

        code = main([str(self.run / SUBMITTED), *self.words, f"run_dir={self.run}", "--requeued"])
        if code in [128 + number for number in _WARNINGS]:
            if self._first:
                note(self.run, "stopped", signal=code - 128)
                self._compare_save_time(facts.allocation["signal_delay"])
            return code
        if code == 1:  # another rank or its node is lost, which Slurm may see later than we do
            note(self.run, "lost", rank=os.environ.get("SLURM_PROCID"))
            raise SystemExit(1)
        if code:
            self._refuse("")
        if self._first:
            note(self.run, "finished")
        return 0

    @property
    def _first(self) -> bool:
        return os.environ.get("SLURM_PROCID") == "0"

    def _refuse(self, message: str) -> None:
        """End for a reason that another start would meet again."""
        if message:
            print(message, file=sys.stderr, flush=True)
        note(self.run, "refused", rank=os.environ.get("SLURM_PROCID"))
        raise SystemExit(2)

    def _listen(self) -> None:
        """Replace submitit's signal handlers, which would save and requeue inside the handler.

        The trainer's own take over while it trains. Before that there is nothing to save, so that
        a warning ends the task at once.
        """
        for number in _WARNINGS:
            signal.signal(number, self._too_early)

    def _too_early(self, number: int, frame: FrameType | None) -> None:
        if self._first:
            note(self.run, "stopped", signal=number)
        os._exit(0)

    def _compare_save_time(self, delay: int) -> None:
        from launch.slurm.save_time import last_save_seconds

        seconds = last_save_seconds(self.run)
        if seconds is None:
            return
        print(f"saved in {seconds:.1f} s of the {delay} s between warning and end", flush=True)
        if seconds > delay / 2:
            print(
                f"warning: signal_delay={delay} s is short; submit with --signal-delay {round(4 * seconds)}",
                flush=True,
            )
