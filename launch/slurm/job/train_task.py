"""The task that each rank of a Slurm job runs: join the other ranks, train, log how it ended."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.rendezvous import check_port, slurm_rendezvous
from launch.slurm.job.devices import check_devices
from launch.slurm.runs.job_record import (
    SUBMITTED_CONFIG,
    job_id,
    log_event,
    read_record,
    restart_count,
    start_token,
)
from parallel.errors import UserError
from trainer.errors import RESUME_COMMAND
from trainer.run_directory.ownership import START_TOKEN

_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class TrainTask:
    """The callable that submitit pickles: trains one run."""

    def __init__(self, run: Path) -> None:
        self._run = str(run)  # a pickled Path cannot be read by another version of Python

    @property
    def run(self) -> Path:
        return Path(self._run)

    def __call__(self) -> int:
        """Train; return on every rank when the run has finished or was stopped by a signal.

        Otherwise exit with a nonzero code, so that srun ends the other ranks.
        """
        self._replace_submitits_handlers()
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported, as trainer does
        try:
            record = read_record(self.run)
            env = slurm_rendezvous()
            os.environ |= env | {START_TOKEN: start_token()}
            os.environ[RESUME_COMMAND] = ""  # requeue.py, which comes after, resumes the run or says how to
            if self._is_first_rank:
                nodes, count = os.environ["SLURM_JOB_NODELIST"], int(env["WORLD_SIZE"])
                print(f"job {job_id()}, start {restart_count() + 1} on {nodes}, {_now()}", flush=True)
                log_event(self.run, "start", nodes=nodes, processes=count)
                if int(env["WORLD_SIZE"]) > 1:
                    check_port(env["MASTER_ADDR"], int(env["MASTER_PORT"]))
            limit = record.allocation["max_requeues"]
            if restart_count() > limit:
                raise UserError(
                    f"{self.run}: Slurm has restarted job {job_id()} {restart_count()} times, "
                    f"max_requeues={limit}; resume with: translution resume {self.run}"
                )
            check_devices(record.allocation.get("gpus_per_node"), self.run / SUBMITTED_CONFIG)
        except UserError as error:
            self._fail_permanently(f"error: {error}")
        from trainer.__main__ import main

        flags = ["--requeued", *(["--bind"] if record.allocation.get("bind") else [])]
        code = main([str(self.run / SUBMITTED_CONFIG), f"run_dir={self.run}", *flags])
        if code in [128 + number for number in _WARNINGS]:
            if self._is_first_rank:
                log_event(self.run, "stopped", signal=code - 128)
                self._report_save_time(record.allocation["signal_delay"])
            return code
        if code == 1:  # a rank failed, which the run's faults.jsonl explains
            raise SystemExit(1)
        if code:
            self._fail_permanently()
        if self._is_first_rank:
            log_event(self.run, "finished")
            if record.sweep:
                from launch.slurm.watch.sweep import show_if_complete

                show_if_complete(Path(record.sweep), self.run.parent)
        return 0

    @property
    def _is_first_rank(self) -> bool:
        return os.environ.get("SLURM_PROCID") == "0"

    def _fail_permanently(self, message: str | None = None) -> NoReturn:
        """Exit; do not retry."""
        if message and os.environ.get("SLURM_LOCALID", "0") == "0":  # one line a host
            print(message, file=sys.stderr, flush=True)
        log_event(self.run, "refused", rank=os.environ.get("SLURM_PROCID"))
        raise SystemExit(2)

    def _replace_submitits_handlers(self) -> None:
        """Exit at once on a signal until the trainer installs its own handlers: there is nothing to save yet.

        submitit's handlers would save and requeue inside the handler.
        """
        for number in _WARNINGS:
            signal.signal(number, self._stop_before_training)

    def _stop_before_training(self, number: int, frame: FrameType | None) -> None:
        if self._is_first_rank:
            log_event(self.run, "stopped", signal=number)
        os._exit(0)

    def _report_save_time(self, delay: int) -> None:
        from launch.slurm.preflight import last_save_seconds, save_warning

        seconds = last_save_seconds(self.run)
        if seconds is None:
            return
        print(f"saved in {seconds:.1f} s of the {delay} s between warning and end", flush=True)
        if warning := save_warning(seconds, "measured", delay):
            print(warning, flush=True)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
