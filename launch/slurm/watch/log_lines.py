"""What a person wants to read of a job's output: without the launchers' own lines."""

import re
from collections.abc import Iterable, Iterator

_NOISE = re.compile(
    r"submitit (INFO|WARNING|ERROR) |"
    r"(srun|slurmstepd): (error|warning|Job step|launch/|Force|Terminating|job |Step|forcing)|srun: got SIG|"
    r"slurmstepd-\S+: error: \*\*\*|"
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,\d]*\] \[INFO\] |"
    r"\[rank\d+\]:\[W\d+ |\[W\d+ [\d:.]+ "
)
_TROUBLE = re.compile(r"slurmstepd\S*: error: \*\*\* .*(?P<why>DUE TO (TIME LIMIT|NODE FAILURE|PREEMPTION))")


def readable(lines: Iterable[str]) -> Iterator[str]:
    """The lines without those of srun, slurmstepd, submitit and torch's C++ log, save the reason why Slurm
    ended the job. Carriage returns of progress bars become lines."""
    for line in lines:
        if trouble := _TROUBLE.match(line):
            yield f"Slurm ended the job {trouble['why'].lower()}"
        elif not _NOISE.match(line):
            yield line
