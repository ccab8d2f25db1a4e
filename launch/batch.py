"""From an allocation to submitit's executor: the batch script around a run's tasks."""

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

from launch.allocation import Allocation
from parallel.errors import UserError


def executor(
    runs: list[Path], allocation: Allocation, folder: Path, name: str, parallel: int | None, **more: Any
) -> submitit.SlurmExecutor:
    """An executor whose job, or array of jobs, runs with the code of each run's directory.

    `folder` takes submitit's pickles and the output. `more` are sbatch options. Raises UserError
    where there is no Slurm.
    """
    try:
        made = submitit.SlurmExecutor(folder, python=_python(allocation))
    except RuntimeError:
        raise UserError(
            "srun: not found; is this a machine of a Slurm cluster? (--dry-run works anywhere)"
        ) from None
    limits = {"array_parallelism": parallel} if parallel else {}
    made.update_parameters(
        job_name=name,
        time=allocation.time,
        nodes=allocation.nodes,
        ntasks_per_node=allocation.processes_per_node,
        signal_delay_s=allocation.signal_delay,
        stderr_to_stdout=True,
        setup=setup_lines(runs, allocation),
        teardown=teardown_lines(),
        srun_args=_srun_args(runs, allocation),
        additional_parameters={"requeue": True} | more,
        **limits,
        **{
            key: value
            for key in ("gpus_per_node", "cpus_per_task", "partition", "account", "qos", "constraint")
            if (value := getattr(allocation, key)) is not None
        },
        **({"mem": f"{round(allocation.mem_gb * 1024)}MB"} if allocation.mem_gb else {}),
    )
    return made


def setup_lines(runs: list[Path], allocation: Allocation) -> list[str]:
    """Shell lines ahead of srun: the run of this element of the array, its code, and a look at the nodes."""
    lines = [
        f"RUNS=({' '.join(shlex.quote(str(run)) for run in runs)})",
        "export RUN=${RUNS[${SLURM_ARRAY_TASK_ID:-0}]}",
        # The copy goes before everything else, also before the directory the job was submitted from.
        "export PYTHONPATH=$RUN/code${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        'test -z "$SLURM_CPUS_PER_TASK" || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        *allocation.setup,
    ]
    if allocation.nodes > 1:
        look = (
            'test -r "$RUN/slurm.json" || { echo "error: $SLURMD_NODENAME: there is no run directory $RUN; '
            'it must be on a file system that all nodes share"; exit 2; }'
        )
        lines.append(
            f"srun --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 sh -c {shlex.quote(look)} || exit 2"
        )
    return lines


def teardown_lines() -> list[str]:
    """Shell lines after srun: whether the job is to start again."""
    return ["code=$?", f'{shlex.quote(sys.executable)} -m launch.requeue "$RUN" $code', "exit $?"]


def submit_tasks(made: submitit.SlurmExecutor, tasks: list[Callable[[], Any]]) -> list[str]:
    """Submit one job, or an array for several; returns the ids. Raises UserError with sbatch's reason."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats sbatch's errors there
            if len(tasks) == 1:
                return [made.submit(tasks[0]).job_id]
            with made.batch():
                jobs = [made.submit(task) for task in tasks]
        return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch: {_reason(str(error))}") from None


def script(made: submitit.SlurmExecutor) -> str:
    """The batch script as it would be submitted."""
    return made._make_submission_file_text(made._submitit_command_str, "dry-run")


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error:" in line] or text.strip().splitlines()
    return re.sub(r"^(sbatch: |error: |Batch job submission failed: )+", "", lines[-1])


def _python(allocation: Allocation) -> str | None:
    image = allocation.container
    if image is None:
        return None
    if image.endswith(".sif"):
        binds = ",".join(_mounts())
        nv = "--nv " if allocation.gpus_per_node else ""
        return f"apptainer exec {nv}--bind {shlex.quote(binds)} {shlex.quote(image)} python"
    return "python"


def _srun_args(runs: list[Path], allocation: Allocation) -> list[str]:
    args = ["--kill-on-bad-exit=1"]  # one rank that fails ends the others, which would wait for it
    if allocation.container and not allocation.container.endswith(".sif"):
        mounts = ",".join(f"{path}:{path}" for path in dict.fromkeys([*_mounts(), *map(str, runs)]))
        args += [f"--container-image={allocation.container}", f"--container-mounts={mounts}"]
        args += [f"--container-workdir={Path.cwd()}"]
    return args


def _mounts() -> list[str]:
    return [str(Path.cwd())]
