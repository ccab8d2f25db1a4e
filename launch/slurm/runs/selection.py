"""Which run a word on the command line means: a directory, a job id, a name or its beginning, or a sweep."""

import re
from pathlib import Path

from launch.slurm.runs.job_record import RECORD_FILE, JobRecord, read_record
from launch.slurm.runs.states import submitted_runs
from parallel.errors import UserError

_OVERRIDE = re.compile(r"[\w.\[\]]+=.*", re.DOTALL)


def select_runs(words: list[str], root: Path) -> list[Path]:
    """The runs that the words mean, each once, in the order of the words.

    A word is a run's directory, its name or the beginning of it, one of its jobs' ids, or a sweep: its
    folder, the folder's name, or its array's id. Raises UserError for a word that means none, or several
    that are not one sweep.
    """
    found: list[Path] = []
    for word in words:
        found += _select(word, root)
    return list(dict.fromkeys(found))


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Words that name runs, and `key=value` overrides; a directory is a run whatever its name."""
    overrides = [w for w in words if _OVERRIDE.fullmatch(w) and not (Path(w) / RECORD_FILE).exists()]
    return [word for word in words if word not in overrides], overrides


def _select(word: str, root: Path) -> list[Path]:
    path = Path(word)
    if (path / RECORD_FILE).exists():
        return [path]
    if (root / word / RECORD_FILE).exists():
        return [root / word]
    runs = submitted_runs(root)
    if path.is_dir() and path.parent.absolute() != root.absolute():
        runs += submitted_runs(path.parent)
    runs.sort()
    records: dict[Path, JobRecord] = {}
    for run in runs:
        try:
            records[run] = read_record(run)
        except UserError:
            continue  # damaged: its directory still names it
    for matches in (_by_job(word, records), _by_sweep(path, word, root, records)):
        if matches:
            return matches
    begun = [run for run in runs if run.name.startswith(path.name)] if path.name else []
    if "/" in word.rstrip("/") and path.parent.absolute() != root.absolute():
        begun = [run for run in begun if run.parent.absolute() == path.parent.absolute()]
    if not begun:
        if path.is_dir():
            raise UserError(f"{word}: was not submitted to Slurm: it has no {RECORD_FILE}")
        raise UserError(f"{word}: no run in {root} has this directory, name or job; see translution jobs")
    sweeps = {records[run].sweep if run in records else "" for run in begun}
    if len(begun) > 1 and (len(sweeps) > 1 or "" in sweeps):
        raise UserError(f"{word}: means {len(begun)} runs; write more of the name: {_names(begun)}")
    return begun


def _by_job(word: str, records: dict[Path, JobRecord]) -> list[Path]:
    if not re.fullmatch(r"\d+(_\d+)?", word):
        return []
    return [
        run
        for run, record in records.items()
        if any(word in (job, job.partition("_")[0]) for job in (*record.jobs, *record.evaluation_jobs))
    ]


def _by_sweep(path: Path, word: str, root: Path, records: dict[Path, JobRecord]) -> list[Path]:
    folders = {str(path.absolute()), str((root / word).absolute())}
    return [run for run, record in records.items() if record.sweep and record.sweep in folders]


def _names(runs: list[Path]) -> str:
    names = [run.name for run in runs]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
