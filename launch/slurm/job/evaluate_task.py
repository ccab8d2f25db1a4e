"""`--evaluate-every N`: a separate job that evaluates a run's checkpoints while the run trains."""

import time
from pathlib import Path

from submitit.helpers import DelayedSubmission

from launch.slurm.allocation import Allocation
from launch.slurm.batch_script import make_executor, submit_tasks
from launch.slurm.job.devices import check_devices
from launch.slurm.queries import OVER, last_state
from launch.slurm.runs.job_record import SUBMITTED_CONFIG, read_events, read_record, write_record
from parallel.errors import UserError
from trainer.config.run import load_config
from trainer.run_directory.awaited import await_checkpoints, await_no_more
from trainer.run_directory.run_directory import RunDirectory

_CHECKPOINT_SECONDS = 5.0  # between checks for a new checkpoint
_CONTROLLER_SECONDS = 60.0  # between queries to Slurm's controller


def submit_evaluation(run: Path, allocation: Allocation, every: int) -> str:
    """Submit the evaluation of `run` at every `every`-th step, to start once training has; returns the id."""
    record = read_record(run)
    one_process = allocation.model_copy(
        update={
            "nodes": 1,
            "gpus_per_node": 1 if allocation.gpus_per_node else None,
            "tasks_per_node": None if allocation.gpus_per_node else 1,
            "nodelist": None,
        }
    )
    name = f"{run.name[:40]}-evaluation"
    executor = make_executor(
        [run], one_process, run / "slurm", name, record, trains=False, dependency=f"after:{record.job}"
    )
    await_checkpoints(run, every)
    try:
        (job,) = submit_tasks(executor, [EvaluateTask(run, every)])
    except UserError:
        await_no_more(run)
        raise
    record.evaluation_jobs.append(job)
    record.evaluate_every = every
    write_record(run, record)
    print(f"  evaluation every {every} steps: job {job}, results in {run / 'evaluations.jsonl'}")
    return job


class EvaluateTask:
    """Evaluates each new checkpoint whose step `every` divides, until the run has ended."""

    def __init__(self, run: Path, every: int) -> None:
        self._run = str(run)  # a pickled Path cannot be read by another version of Python
        self.every = every

    @property
    def run(self) -> Path:
        return Path(self._run)

    def checkpoint(self) -> DelayedSubmission:
        """The task that submitit restarts at the time limit: this one, which skips recorded evaluations."""
        return DelayedSubmission(self)

    def __call__(self) -> int:
        gpus = read_record(self.run).allocation.get("gpus_per_node")
        try:
            check_devices(gpus, self.run / SUBMITTED_CONFIG)
            self._evaluate_until_over()
        except UserError as error:
            await_no_more(self.run)
            raise SystemExit(f"error: {error}") from None
        except Exception:
            await_no_more(self.run)  # else the run would keep every checkpoint
            raise
        return 0

    def _evaluate_until_over(self) -> None:
        from trainer.evaluation import evaluate_new_checkpoints
        from trainer.run_directory.checkpoints import delete_old

        self._next_question = 0.0
        while True:
            over = self._run_is_over()  # asked first, so that the last checkpoint is not missed
            evaluate_new_checkpoints(self.run, self.every)
            if over:
                break
            time.sleep(_CHECKPOINT_SECONDS)
        await_no_more(self.run)
        run = RunDirectory(self.run)
        if run.config.exists():
            train = load_config(run.config, []).train
            delete_old(run.checkpoints, train.keep_checkpoints, train.keep_every)

    def _run_is_over(self) -> bool:
        if (self.run / "result.json").exists():
            return True
        events = read_events(self.run)
        if events and events[-1]["event"] in ("finished", "refused", "exhausted", "failed"):
            return True
        if time.monotonic() < self._next_question:
            return False
        self._next_question = time.monotonic() + _CONTROLLER_SECONDS
        return not self.run.exists() or last_state(read_record(self.run).job or "") in OVER
