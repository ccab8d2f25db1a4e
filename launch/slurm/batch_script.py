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
from launch.slurm.refusal import refused_options
from launch.slurm.runs.job_record import RECORD_FILE, JobRecord
from parallel.errors import UserError

_SAME_NAME = (
    "gpus_per_node", "cpus_per_task", "partition", "account", "qos", "constraint", "exclude", "nodelist",
)  # fmt: skip
"""Fields of an allocation whose names are submitit's too."""
_CHECK_SECONDS = 120  # for all nodes to report; usually 20
_MAX_TIMEOUTS = 1_000_000  # how often submitit requeues an evaluation; requeue.py counts for training


def make_executor(
    runs: list[Path],
    allocation: Allocation,
    folder: Path,
    name: str,
    record: JobRecord,
    parallel: int | None = None,
    dependency: str | None = None,
    trains: bool = True,
) -> submitit.SlurmExecutor:
    """An executor for one job, or for an array of jobs that each run the code in their run's directory.

    folder     for submitit's pickles and the jobs' output
    record     of any of the runs
    parallel   how many jobs of an array run at a time
    trains     False for an evaluation, which submitit requeues, and launch.slurm.job.requeue does not
    """
    mounts = list(dict.fromkeys([record.folder, str(folder), *map(str, runs), *record.data]))
    waits = {"dependency": dependency} if dependency else {}
    extra = {"requeue": True, "chdir": record.folder} | _passed_options(allocation) | waits
    python, srun_args = _python(allocation, mounts), _srun_args(allocation, mounts, record.folder)
    executor = _Executor(folder, python=python, max_num_timeout=_MAX_TIMEOUTS)
    limits = {"array_parallelism": parallel} if parallel else {}
    executor.update_parameters(
        job_name=name,
        time=allocation.time,
        nodes=allocation.nodes,
        ntasks_per_node=allocation.processes_per_node,
        signal_delay_s=allocation.signal_delay,
        stderr_to_stdout=True,
        setup=[
            *_environment_lines(runs),
            *_user_lines(allocation.setup, trains),
            *(_check_lines(allocation, python, srun_args) if trains else []),
        ],
        teardown=_teardown_lines() if trains else None,
        srun_args=srun_args,
        additional_parameters=extra,
        **limits,
        **{key: value for key in _SAME_NAME if (value := getattr(allocation, key)) is not None},
        **({"mem": f"{round(allocation.mem_gb * 1024)}MB"} if allocation.mem_gb else {}),
    )
    if len(runs) > 1:
        executor.parameters["map_count"] = len(runs)  # as submitit sets it, for the printed script
    return executor


def _passed_options(allocation: Allocation) -> dict[str, Any]:
    """Options of sbatch that submitit does not know: what the user passes through, and mail."""
    split = [option.partition("=") for option in allocation.sbatch]
    options: dict[str, Any] = {key: value if equals else True for key, equals, value in split}
    addresses = [receiver for receiver in allocation.notify if "://" not in receiver]
    if addresses:
        options |= {"mail-user": ",".join(addresses), "mail-type": "END,FAIL,INVALID_DEPEND"}
    return options


class _Executor(submitit.SlurmExecutor):
    """Works on machines without Slurm too, to print scripts."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def _environment_lines(runs: list[Path]) -> list[str]:
    """Choose the run of this array element and its code, and set the environment."""
    return [
        f"RUNS=({' '.join(shlex.quote(str(run)) for run in runs)})",
        "export RUN=${RUNS[${SLURM_ARRAY_TASK_ID:-0}]}",
        # The run's copy of the code comes first, also before the directory the job was submitted from.
        "export PYTHONPATH=$RUN/code${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        'test -z "$SLURM_CPUS_PER_TASK" || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
    ]


def _user_lines(commands: list[str], trains: bool) -> list[str]:
    """The user's commands, in the script's own shell; the log says when one fails or ends the script."""
    if not commands:
        return []
    told = 'echo "error: a setup command ended the job with exit code $code: $SETUP_COMMAND"'
    then = f"{_requeue_command()}; exit $code" if trains else "exit $code"
    lines = [f"trap {shlex.quote(f'code=$?; {told}; {then}')} EXIT"]
    for command in commands:
        lines += [
            f"SETUP_COMMAND={shlex.quote(command)}",
            command,
            'code=$?; test $code = 0 || echo "warning: a setup command returned $code: $SETUP_COMMAND"',
        ]
    return [*lines, "trap - EXIT"]


def _check_lines(allocation: Allocation, python: str, srun_args: list[str]) -> list[str]:
    """Check on every node that it sees the run directory; unless told not to, also as `doctor` does."""
    see = (
        f'test -r "$RUN/{RECORD_FILE}" || {{ echo "error: $SLURMD_NODENAME: cannot see the run directory '
        '$RUN; it must be on a file system that all nodes share"; exit 2; }'
    )
    srun = "srun --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1"
    give_up = "{ " + "; ".join(_teardown_lines()) + "; }"
    lines = [f"{srun} sh -c {shlex.quote(see)} || {give_up}"] if allocation.nodes > 1 else []
    if allocation.checks_hosts:
        inside = shlex.join(srun_args)
        measure = f'{srun} {inside} {python} -m launch.ssh.host_speed "$RUN" {RECORD_FILE} 198.51.100.1'
        own = shlex.quote(sys.executable)
        judge = f'{own} -m launch.slurm.job.check_hosts "$RUN" $SLURM_JOB_NUM_NODES'
        lines.append(f"timeout {_CHECK_SECONDS} {measure} 2>&1 | {judge} || {give_up}")
    return lines


def _teardown_lines() -> list[str]:
    """Shell lines after srun: requeue the job if there is a reason to."""
    return ["code=$?", _requeue_command(), "exit $?"]


def _requeue_command() -> str:
    return f'{shlex.quote(sys.executable)} -m launch.slurm.job.requeue "$RUN" $code'


def submit_tasks(executor: submitit.SlurmExecutor, tasks: list[Callable[[], Any]]) -> list[str]:
    """Submit one job, or an array for several; returns the ids. Raises UserError with sbatch's reason."""
    folder = Path(executor.folder)
    executor.parameters.pop("map_count", None)  # submitit sets it
    before = set(folder.iterdir()) if folder.is_dir() else set()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints sbatch's errors too
            if len(tasks) == 1:
                return [executor.submit(tasks[0]).job_id]
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        for left in set(folder.iterdir() if folder.is_dir() else []) - before:
            left.unlink()
        options = refused_options(executor.parameters)
        raise UserError(f"{options}sbatch: {_sbatch_reason(str(error))}") from None
    finally:
        for link in folder.glob(".submission_file_*.sh"):  # submitit leaves links to scripts that it renamed
            link.unlink(missing_ok=True)


def batch_script(executor: submitit.SlurmExecutor) -> str:
    """The batch script as it would be submitted."""
    return executor._make_submission_file_text(executor._submitit_command_str, "dry-run")


def _sbatch_reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error:" in line] or text.strip().splitlines()
    return re.sub(r"^(sbatch: |error: |Batch job submission failed: )+", "", lines[-1])


def _python(allocation: Allocation, mounts: list[str]) -> str:
    image = allocation.container
    if image is None:
        return shlex.quote(sys.executable)
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
