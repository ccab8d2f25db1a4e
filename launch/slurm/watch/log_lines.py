"""What a person wants to read of a job's output: without the launchers' own lines."""

import re
from collections.abc import Iterable, Iterator

from launch.slurm.runs.failures import slurms_word

_NOISE = re.compile(
    r"submitit (INFO|WARNING|ERROR) |"
    r"(srun|slurmstepd): (error|warning|Job step|launch/|Force|Terminating|job |Step|forcing)|srun: got SIG|"
    r"slurmstepd-\S+: error: \*\*\*|"
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,\d]*\] \[INFO\] |"
    r"\[rank\d+\]:\[W\d+ |\[W\d+ [\d:.]+ "
)


def readable(lines: Iterable[str]) -> Iterator[str]:
    """The lines without those of srun, slurmstepd, submitit and torch's C++ log, save what they say of the
    job's end, in plain words."""
    for line in lines:
        if told := slurms_word(line):
            yield told
        elif not _NOISE.match(line):
            yield line
