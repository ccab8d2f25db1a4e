"""Why a run ended: found in the output of its ranks, also when another rank than the first knows."""

import re
from pathlib import Path

from launch.slurm.runs.job_record import JobRecord

_TAIL_BYTES = 65_536
_RANKS = 4096  # read at most, of one start
_LOST_PEER = re.compile(r"rank \d+ of \d+ lost another process")
_LAST_WORD = re.compile(r"^\w*(Error|Exception|Interrupt)\b.*")
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

    A rank that only lost a peer is asked last: the peer may have said what happened.
    """
    second: tuple[int, str] | None = None
    for rank, path in list(logs.items())[:_RANKS]:
        line = last_error(path)
        if line is None:
            continue
        if not _LOST_PEER.search(line):
            return rank, line
        second = second or (rank, line)
    return second


def last_error(path: Path) -> str | None:
    """The last error in a rank's output since its last start; of a traceback the last line."""
    lines = tail(path)
    starts = [number for number, line in enumerate(lines) if _START.match(line)]
    for line in reversed(lines[starts[-1] if starts else 0 :]):
        if line.startswith("error: "):
            return line.removeprefix("error: ").strip()
        if _LAST_WORD.match(line):
            return line.strip()
    return None


def tail(path: Path, size: int = _TAIL_BYTES) -> list[str]:
    """The last lines of a file, [] where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
