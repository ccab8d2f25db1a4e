"""Builds a job's batch script, with submitit's executor, from an allocation."""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.slurm.allocation import Allocation
from launch.slurm.runs.job_record import RECORD_FILE, JobRecord
from parallel.errors import UserError

_MAX_TIMEOUTS = 1_000_000  # how often submitit requeues an evaluation; requeue.py counts for training


def make_executor(
    runs: list[Path],
    allocation: Allocation,
    folder: Path,
    name: str,
    record: JobRecord,
    parallel: int | None = None,
    **sbatch_options: Any,
) -> submitit.SlurmExecutor:
    """An executor for one job, or for an array of jobs that each run the code in their run's directory.

    folder     for submitit's pickles and the jobs' output
    record     of any of the runs
    parallel   how many jobs of an array run at a time
    """
    mounts = list(dict.fromkeys([record.folder, str(folder), *map(str, runs), *record.data]))
    executor = _Executor(folder, python=_python(allocation, mounts), max_num_timeout=_MAX_TIMEOUTS)
    limits = {"array_parallelism": parallel} if parallel else {}
    executor.update_parameters(
        job_name=name,
        time=allocation.time,
        nodes=allocation.nodes,
        ntasks_per_node=allocation.processes_per_node,
        signal_delay_s=allocation.signal_delay,
        stderr_to_stdout=True,
        setup=setup_lines(runs, allocation),
        teardown=teardown_lines(),
        srun_args=_srun_args(allocation, mounts, record.folder),
        additional_parameters={"requeue": True, "chdir": record.folder} | sbatch_options,
        **limits,
        **{
            key: value
            for key in ("gpus_per_node", "cpus_per_task", "partition", "account", "qos", "constraint")
            if (value := getattr(allocation, key)) is not None
        },
        **({"mem": f"{round(allocation.mem_gb * 1024)}MB"} if allocation.mem_gb else {}),
    )
    return executor


class _Executor(submitit.SlurmExecutor):
    """Works on machines without Slurm too, to print scripts."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def setup_lines(runs: list[Path], allocation: Allocation) -> list[str]:
    """Shell lines before srun: choose the run of this array element and its code, set the environment,
    and check that every node sees the run directory."""
    lines = [
        f"RUNS=({' '.join(shlex.quote(str(run)) for run in runs)})",
        "export RUN=${RUNS[${SLURM_ARRAY_TASK_ID:-0}]}",
        # The run's copy of the code comes first, also before the directory the job was submitted from.
        "export PYTHONPATH=$RUN/code${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        'test -z "$SLURM_CPUS_PER_TASK" || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        *allocation.setup,
    ]
    if allocation.nodes > 1:
        check = (
            f'test -r "$RUN/{RECORD_FILE}" || {{ echo "error: $SLURMD_NODENAME: cannot see the run directory '
            '$RUN; it must be on a file system that all nodes share"; exit 2; }'
        )
        lines.append(
            f"srun --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 sh -c {shlex.quote(check)} || {{ "
            f"code=$?; test $code = 2 || {_requeue_command()}; exit $code; }}"
        )
    return lines


def teardown_lines() -> list[str]:
    """Shell lines after srun: requeue the job if there is a reason to."""
    return ["code=$?", _requeue_command(), "exit $?"]


def _requeue_command() -> str:
    return f'{shlex.quote(sys.executable)} -m launch.slurm.job.requeue "$RUN" $code'


def submit_tasks(executor: submitit.SlurmExecutor, tasks: list[Callable[[], Any]]) -> list[str]:
    """Submit one job, or an array for several; returns the ids. Raises UserError with sbatch's reason."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints sbatch's errors too
            if len(tasks) == 1:
                return [executor.submit(tasks[0]).job_id]
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch: {_sbatch_reason(str(error))}") from None


def batch_script(executor: submitit.SlurmExecutor) -> str:
    """The batch script as it would be submitted."""
    return executor._make_submission_file_text(executor._submitit_command_str, "dry-run")


def _sbatch_reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error:" in line] or text.strip().splitlines()
    return re.sub(r"^(sbatch: |error: |Batch job submission failed: )+", "", lines[-1])


def _python(allocation: Allocation, mounts: list[str]) -> str | None:
    image = allocation.container
    if image is None:
        return None
    if image.endswith(".sif"):
        binds = ",".join(mounts)
        nv = "--nv " if allocation.gpus_per_node else ""
        return f"apptainer exec {nv}--bind {shlex.quote(binds)} {shlex.quote(image)} python"
    return "python"


def _srun_args(allocation: Allocation, mounts: list[str], folder: str) -> list[str]:
    args = ["--kill-on-bad-exit=1"]  # when a rank fails, end the others, which would wait for it
    if allocation.container and not allocation.container.endswith(".sif"):
        pairs = ",".join(f"{path}:{path}" for path in mounts)
        args += [f"--container-image={allocation.container}", f"--container-mounts={pairs}"]
        args += [f"--container-workdir={folder}"]
    return args
