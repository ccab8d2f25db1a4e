"""What a preparation has done until now: progress.jsonl, from which a rerun goes on."""

from pathlib import Path

from pydantic import ValidationError

from parallel.errors import UserError
from trainer.data.images.manifest import Shard, Skipped
from trainer.data.prepare.output_folder import Record, check_same_settings

PROGRESS = "progress.jsonl"
AGAIN = "be written; run the command again to go on"
Settings = dict[str, int | str | None]


class Plan(Record):
    """First line of progress.jsonl: what is to be made."""

    settings: Settings
    shards: int
    bytes: int


class Finished(Record):
    """Every further line of progress.jsonl: a shard that is whole."""

    number: int
    shard: Shard
    skipped: list[Skipped]


def read_record(out: Path, settings: Settings) -> tuple[Plan, list[Finished]] | None:
    """What an earlier run planned and finished; raises UserError where `out` holds anything else."""
    path = out / PROGRESS
    if not path.exists():
        strange = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
        if strange:
            raise UserError(f"--out {out}: is not empty (holds {strange[0]}); name another folder")
        return None
    lines = path.read_text().split("\n")[:-1]  # what stands after the last line end was cut off by a kill
    try:
        plan = Plan.model_validate_json(lines[0])
        finished = [Finished.model_validate_json(line) for line in lines[1:]]
    except (IndexError, ValidationError):
        raise UserError(f"{path}: is damaged; delete {out} to start over") from None
    check_same_settings(out, plan.settings, settings)
    whole = [one for one in finished if _size(out / one.shard.file) == one.shard.bytes]
    return plan, whole


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def write_record(out: Path, plan: Plan, finished: list[Finished]) -> None:
    """Begin progress.jsonl anew with what is known; remove what killed processes left."""
    for left in out.glob(".shard-*.new"):
        left.unlink(missing_ok=True)
    temporary = out / f".{PROGRESS}.new"
    temporary.write_text("".join(part.model_dump_json() + "\n" for part in (plan, *finished)))
    temporary.replace(out / PROGRESS)
