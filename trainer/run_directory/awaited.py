"""Checkpoints that an evaluation in another process waits for: the run must not delete them before."""

import json
from pathlib import Path
from typing import Any

from trainer.atomic_write import atomic_write

_FILE = "awaited.json"
EVALUATIONS = "evaluations.jsonl"


def await_checkpoints(run_dir: Path, every: int) -> None:
    """Have the run keep its checkpoints of every `every`-th step until they are evaluated."""
    atomic_write(run_dir / _FILE, json.dumps({"every": every}) + "\n")


def await_no_more(run_dir: Path) -> None:
    """No evaluation is to come: let the run delete its checkpoints as usual."""
    (run_dir / _FILE).unlink(missing_ok=True)


def is_awaited(run_dir: Path, step: int) -> bool:
    """Whether an evaluation waits for the checkpoint of this step."""
    try:
        every = json.loads((run_dir / _FILE).read_text())["every"]
    except FileNotFoundError:
        return False
    return step % every == 0 and step not in {record["step"] for record in read_evaluations(run_dir)}


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """What evaluate_new_checkpoints has recorded, a step and its evaluation each; a line that is still being
    written is left out."""
    path, records = run_dir / EVALUATIONS, []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def forget_evaluations(run_dir: Path, after: int) -> None:
    """Drop those of steps beyond `after`, which the run will take again."""
    kept = [record for record in read_evaluations(run_dir) if record["step"] <= after]
    if (run_dir / EVALUATIONS).exists():
        atomic_write(run_dir / EVALUATIONS, "".join(json.dumps(record) + "\n" for record in kept))
