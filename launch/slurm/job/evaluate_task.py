"""`--evaluate-every N`: a separate job that evaluates a run's checkpoints while the run trains."""

import os
import time
from pathlib import Path

from submitit.helpers import DelayedSubmission

from launch.rendezvous import slurm_rendezvous
from launch.slurm.allocation import Allocation
from launch.slurm.batch_script import make_executor, submit_tasks
from launch.slurm.job.devices import check_devices
from launch.slurm.nodes import partition_nodes, process_memory
from launch.slurm.queries import OVER, last_state
from launch.slurm.runs.job_record import SUBMITTED_CONFIG, read_events, read_record, write_record
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig, join_mesh
from parallel.planner.plan import layer_kinds
from parallel.planner.recommend import evaluation_mesh, model_parallel_mesh
from parallel.processes import join_processes, leave_processes, rank, run_on_first_rank, world_size
from trainer.config.run import load_config
from trainer.run_directory.awaited import await_checkpoints, await_no_more
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import pick_device

_CHECKPOINT_SECONDS = 5.0  # between checks for a new checkpoint
_CONTROLLER_SECONDS = 60.0  # between queries to Slurm's controller


def submit_evaluation(run: Path, allocation: Allocation, every: int) -> str:
    """Submit the evaluation of `run` at every `every`-th step, to start once training has; returns the id.

    It gets as many GPUs of one node as its weights need, as planned.
    """
    record = read_record(run)
    gpus = _evaluation_mesh(run, allocation).model if allocation.gpus_per_node else None
    own = allocation.model_copy(
        update={
            "nodes": 1,
            "gpus_per_node": gpus,
            "tasks_per_node": None if allocation.gpus_per_node else 1,
            "nodelist": None,
        }
    )
    name = f"{run.name[:40]}-evaluation"
    executor = make_executor(
        [run], own, run / "slurm", name, record, trains=False, dependency=f"after:{record.job}"
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
    shown = f" on {gpus} GPUs" if gpus and gpus > 1 else ""
    print(f"  evaluation every {every} steps{shown}: job {job}, results in {run / 'evaluations.jsonl'}")
    return job


def _evaluation_mesh(run: Path, allocation: Allocation) -> Mesh:
    """How the fewest GPUs that suffice share the weights; one where their memory is not known."""
    config = load_config(run / SUBMITTED_CONFIG, [])
    memory = process_memory(allocation, partition_nodes(allocation.partition, allocation.constraint))
    if memory is None or not allocation.gpus_per_node:
        return Mesh()
    most, bytes_each = allocation.gpus_per_node, memory.least_gb * 1e9
    net, samples = layer_kinds(config.model), config.train.evaluate_batch
    return evaluation_mesh(net, most, bytes_each, samples, config.precision)


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
        try:
            check_devices(read_record(self.run).allocation.get("gpus_per_node"), self.run / SUBMITTED_CONFIG)
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

        mesh = self._join_ranks() if int(os.environ.get("SLURM_NTASKS", "1")) > 1 else None
        self._next_question = 0.0
        while True:
            over = run_on_first_rank(self._run_is_over)  # asked first, so that the last one is not missed
            evaluate_new_checkpoints(self.run, self.every, mesh)
            if over:
                break
            time.sleep(_CHECKPOINT_SECONDS)
        if rank() == 0:
            await_no_more(self.run)
            run = RunDirectory(self.run)
            if run.config.exists():
                train = load_config(run.config, []).train
                delete_old(run.checkpoints, train.keep_checkpoints, train.keep_every)
        leave_processes()

    def _join_ranks(self) -> Mesh:
        """Connect this job's tasks, which share the weights."""
        os.environ |= slurm_rendezvous()
        config = load_config(self.run / SUBMITTED_CONFIG, [])
        join_processes(pick_device(config), timeout=config.parallel.timeout)
        mesh = model_parallel_mesh(layer_kinds(config.model), world_size())
        assert mesh is not None  # as submitted
        return join_mesh(ParallelConfig(offset=mesh.offset, tensor=mesh.tensor))

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
