"""progress.jsonl: what a preparation has finished, so that the next command can resume it."""

from pathlib import Path

from pydantic import ValidationError

from parallel.errors import UserError
from trainer.atomic_write import atomic_write
from trainer.data.images.manifest import Shard, Skipped
from trainer.data.prepare.output_folder import (
    WRITE_AGAIN,
    Record,
    check_no_other_files,
    check_same_settings,
)

PROGRESS = "progress.jsonl"
Settings = dict[str, int | str | None]


class Plan(Record):
    """First line of progress.jsonl: settings, number of shards and expected total size in bytes."""

    settings: Settings
    shards: int
    bytes: int


class Finished(Record):
    """Every further line of progress.jsonl: a finished shard."""

    number: int
    shard: Shard
    skipped: list[Skipped]


def read_log(out: Path, settings: Settings) -> tuple[Plan, list[Finished]] | None:
    """An earlier command's plan and finished shards; raises UserError if `out` holds anything else."""
    path = out / PROGRESS
    if not path.exists():
        check_no_other_files(out)
        return None
    lines = path.read_text().split("\n")[:-1]  # the last line is empty, or was cut off by a kill
    try:
        plan = Plan.model_validate_json(lines[0])
        finished = [Finished.model_validate_json(line) for line in lines[1:]]
    except (IndexError, ValidationError):
        raise UserError(f"{path}: is damaged; delete {out} to start over") from None
    check_same_settings(out, plan.settings, settings)
    return plan, [record for record in finished if _size(out / record.shard.file) == record.shard.bytes]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def write_log(out: Path, plan: Plan, finished: list[Finished]) -> None:
    """Write progress.jsonl without lines that were cut off or whose shards are gone."""
    text = "".join(record.model_dump_json() + "\n" for record in (plan, *finished))
    atomic_write(out / PROGRESS, text, doing=WRITE_AGAIN)
