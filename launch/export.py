"""`translution export`: writes the weights of a run to one file for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from models.reference import to_reference_state
from parallel.errors import UserError
from trainer.atomic_write import atomic_write
from trainer.run_directory.restoring import restore
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_evaluator, read_run_config

Format = Literal["reference", "safetensors"]


def export(run_dir: Path, file_format: Format, out: Path) -> None:
    """Write the weights of the newest checkpoint of `run_dir` to `out`.

    file_format  "reference": a state dict of the public code, written by torch.save. "safetensors": our
            own parameters, the net's config as JSON in the file's metadata under "model"

    The file appears under its name once it is complete. Raises UserError without a checkpoint, for a net
    that the public code does not have, and for a file that cannot be written.
    """
    config = read_run_config(run_dir, ["device=cpu"])
    if out.is_dir():
        raise UserError(f"--out {out}: is a directory; name a file")
    if config.study:
        raise UserError(f"{run_dir}: is a study; export one of the runs inside it")
    engine = build_evaluator(config)
    restore(engine, RunDirectory(run_dir), config.model, resumes=False)
    if file_format == "reference":
        try:
            state = to_reference_state(engine.model)
        except ValueError as error:
            raise UserError(f"{run_dir}: {error}; --format safetensors can write it") from None
        _write(out, lambda path: torch.save(state, path))
        return
    own: dict[str, Tensor] = {name: p.detach() for name, p in engine.model.named_parameters()}
    own |= {name: buffer.detach() for name, buffer in engine.model.named_buffers()}
    metadata = {"model": config.model.model_dump_json()}
    _write(out, lambda path: save_file(own, path, metadata))


def _write(out: Path, save: Callable[[Path], None]) -> None:
    try:
        atomic_write(out, save, durable=True)
    except (RuntimeError, SafetensorError) as error:  # how the two libraries report a full disk
        raise UserError(f"{out}: cannot be written: {str(error).splitlines()[0]}") from None
    print(f"wrote {out}")
