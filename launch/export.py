"""`translution export`: writes the weights of a run to one file for other programs."""

from pathlib import Path
from typing import Literal

import torch

from launch.checkpoint.streamed_export import export_checkpoint
from models.reference import to_reference_state
from parallel.checkpoint.blocks import Damaged
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import read_contents
from parallel.errors import UserError
from trainer.atomic_write import atomic_write
from trainer.config.run import RunConfig
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.restoring import restore
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_evaluator, read_run_config

Format = Literal["reference", "safetensors"]


def export(run_dir: Path, file_format: Format, out: Path, verify: bool = True) -> None:
    """Write the weights of the newest checkpoint of `run_dir` to `out`.

    file_format  "reference": a state dict of the public code, written by torch.save. "safetensors": our
            own parameters, a part at a time, the net's config as JSON in the files' metadata under "model";
            an `out` without a suffix becomes a folder of files as the Hugging Face Hub has them
    verify  compare what is read with its checksums

    It appears under its name once it is complete. Raises UserError without a checkpoint, for a net that the
    public code does not have, and for what cannot be written.
    """
    config = read_run_config(run_dir, ["device=cpu", f"train.verify_checkpoints={verify}"])
    if out.is_dir():
        raise UserError(f"--out {out}: is a directory; name a file, or a folder that does not exist")
    if config.study:
        raise UserError(f"{run_dir}: is a study; export one of the runs inside it")
    if file_format == "safetensors":
        _export_newest(RunDirectory(run_dir), config, out)
    else:
        _export_reference(run_dir, config, out)
    print(f"wrote {out}")


def _export_newest(run: RunDirectory, config: RunConfig, out: Path) -> None:
    """The newest checkpoint that is not damaged."""
    saved, damages = checkpoints(run.checkpoints), []
    for path in reversed(saved):
        try:
            catalogue = Catalogue(read_contents(path), config.train.verify_checkpoints)
            export_checkpoint(catalogue, config.model, out)
            return
        except Damaged as damage:
            damages.append(f"{path}: damaged checkpoint ({damage})")
            print(f"{damages[-1]}; the one before it is used", flush=True)
    raise UserError("; ".join(damages) or f"{run.path}: holds no checkpoint")


def _export_reference(run_dir: Path, config: RunConfig, out: Path) -> None:
    engine = build_evaluator(config)
    restore(engine, RunDirectory(run_dir), config, resumes=False)
    try:
        state = to_reference_state(engine.model)
    except ValueError as error:
        raise UserError(f"{run_dir}: {error}; --format safetensors can write it") from None
    try:
        atomic_write(out, lambda path: torch.save(state, path), durable=True)
    except RuntimeError as error:  # how torch reports a full disk
        raise UserError(f"{out}: cannot be written: {str(error).splitlines()[0]}") from None
