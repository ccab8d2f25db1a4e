"""Why a run ended: found in the output of its ranks, also when another rank than the first knows."""

import re
from pathlib import Path

from launch.slurm.runs.job_record import JobRecord

_TAIL_BYTES = 65_536
_RANKS = 4096  # read at most, of one start
_LOST_PEER = re.compile(r"rank \d+ of \d+ lost another process")
_LAST_WORD = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b.*")
_ENDED = re.compile(r"slurmstepd\S*: error: \*\*\* .*DUE TO (TIME LIMIT|NODE FAILURE|PREEMPTION)")
_KILLED = re.compile(r"srun: error: (\S+): tasks? (\S+): (?!Exited with|Terminated)(.+)")
_OUT_OF_MEMORY = re.compile(r"slurmstepd\S*: error: (.*: )?Detected \d+ oom[-_]kill event")
_START = re.compile(r"^job \S+, start \d+ on ")


def log_path(folder: Path, job: str, rank: int) -> Path:
    """The output of one rank of a job, which submitit's executor appends to at every start."""
    return folder / f"{job}_{rank}_log.out"


def log_folders(run: Path, record: JobRecord) -> list[Path]:
    """Where output of the run's jobs may lie: its own folder, and that of its sweep."""
    own = str(run / "slurm")
    return list(dict.fromkeys(Path(each or own).absolute() for each in (own, record.logs, record.sweep)))


def rank_logs(run: Path, record: JobRecord, job: str) -> dict[int, Path]:
    """The output of every rank of a job, by rank."""
    found: dict[int, Path] = {}
    for folder in log_folders(run, record):
        for path in folder.glob(f"{job}_*_log.out"):
            number = path.name.removeprefix(f"{job}_").removesuffix("_log.out")
            if number.isdigit():
                found.setdefault(int(number), path)
    return dict(sorted(found.items()))


def failure_cause(logs: dict[int, Path]) -> tuple[int, str] | None:
    """The rank that says why the last start failed, and its line.

    Slurm's word of a killed rank counts where no rank says more; a rank that only lost a peer comes last, for
    the peer may have said what happened.
    """
    found: list[tuple[int, int, str]] = []
    for rank, path in list(logs.items())[:_RANKS]:
        lines = _since_last_start(path)
        error = next((line for line in map(_own_error, reversed(lines)) if line), None)
        if error and not _LOST_PEER.search(error):
            return rank, error
        if told := next((line for line in map(slurms_word, reversed(lines)) if line), None):
            found.append((0, rank, told))
        elif error:
            found.append((1, rank, error))
    return min(found)[1:] if found else None


def slurms_word(line: str) -> str | None:
    """What a line of srun or slurmstepd says of the job's end, in plain words; None if nothing."""
    if ended := _ENDED.match(line):
        return f"Slurm ended the job: {ended[1].lower()}"
    if killed := _KILLED.match(line):
        return f"{killed[1]}: rank {killed[2]}: {killed[3].strip()}"
    return "out of memory: the kernel killed a process" if _OUT_OF_MEMORY.match(line) else None


def _own_error(line: str) -> str | None:
    if line.startswith("error: "):
        return line.removeprefix("error: ").strip()
    return line.strip() if _LAST_WORD.match(line) else None


def _since_last_start(path: Path) -> list[str]:
    lines = tail(path)
    starts = [number for number, line in enumerate(lines) if _START.match(line)]
    return lines[starts[-1] if starts else 0 :]


def tail(path: Path, size: int = _TAIL_BYTES) -> list[str]:
    """The last lines of a file, [] where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
