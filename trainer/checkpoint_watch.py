"""Evaluating the checkpoints of a run that another process trains."""

import json
from pathlib import Path

from trainer.config.run import load_config
from trainer.data.build import build_source
from trainer.evaluation import evaluate
from trainer.run_directory.checkpoints import checkpoints, load_into
from trainer.run_directory.run_directory import RunDirectory
from trainer.train import build_engine


def evaluate_new_checkpoints(run_dir: Path, every: int) -> list[int]:
    """Evaluate each checkpoint whose step `every` divides and that has no record yet.

    Adds a line per checkpoint to evaluations.jsonl in the run directory; returns their steps. A
    checkpoint that its run deletes meanwhile is left out.
    """
    run = RunDirectory(run_dir)
    records = run_dir / "evaluations.jsonl"
    done = [json.loads(line)["step"] for line in records.read_text().splitlines()] if records.exists() else []
    new = []
    for path in checkpoints(run.checkpoints):
        step = int(path.stem.split("-")[-1])
        if step % every or step in done or not run.config.exists():
            continue
        config = load_config(run.config, [])
        engine = build_engine(config)
        try:
            load_into(engine, path, config.model)
        except ValueError:
            if path.exists():
                raise
            continue
        measured = evaluate(engine, build_source(config), config.train.evaluate_batch)
        with records.open("a") as file:
            file.write(json.dumps({"step": step, "evaluation": measured}) + "\n")
        print(f"step {step}: {measured}", flush=True)
        new.append(step)
    return new
