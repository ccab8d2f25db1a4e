"""`--evaluate-every N`: a job of its own that evaluates a run's checkpoints while the run goes on."""

import time
from pathlib import Path

from submitit.helpers import DelayedSubmission

from launch.slurm.allocation import Allocation
from launch.slurm.batch_script import executor, submit_tasks
from launch.slurm.queries import OVER, last_state
from launch.slurm.runs.job_record import read_facts, read_notes, write_facts

_POLL_SECONDS = 5.0
_LOOK_SECONDS = 60.0  # between questions to Slurm's controller


def submit_evaluation(run: Path, allocation: Allocation, every: int) -> str:
    """Submit the evaluation of `run` at every `every`-th step, to start once its training has begun."""
    facts = read_facts(run)
    one = allocation.model_copy(
        update={
            "nodes": 1,
            "gpus_per_node": 1 if allocation.gpus_per_node else None,
            "tasks_per_node": None if allocation.gpus_per_node else 1,
        }
    )
    made = executor(
        [run], one, run / "slurm", f"{run.name[:40]}-evaluation", facts, dependency=f"after:{facts.job}"
    )
    made.parameters["teardown"] = None  # it is no training: submitit requeues it when it is warned
    (job,) = submit_tasks(made, [EvaluateTask(run, every)])
    facts.evaluation_jobs.append(job)
    write_facts(run, facts)
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
        """What submitit starts again at the time limit; what is evaluated has its record."""
        return DelayedSubmission(self)

    def __call__(self) -> int:
        from trainer.evaluation import evaluate_new_checkpoints

        self._next_look = 0.0
        while True:
            over = self._over()  # before the look, so that the last checkpoint is not missed
            evaluate_new_checkpoints(self.run, self.every)
            if over:
                return 0
            time.sleep(_POLL_SECONDS)

    def _over(self) -> bool:
        if (self.run / "result.json").exists():
            return True
        notes = read_notes(self.run)
        if notes and notes[-1]["event"] in ("finished", "refused", "exhausted"):
            return True
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _LOOK_SECONDS
        return not self.run.exists() or last_state(read_facts(self.run).job or "") in OVER
