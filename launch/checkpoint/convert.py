"""`translution convert-checkpoint`: checkpoints of versions that saved `step-N.pt`, as this one saves them.

Kept for one version.
"""

import pickle
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models import ModelConfig, build_model
from parallel.checkpoint.contents import Index
from parallel.checkpoint.save import written_by
from parallel.checkpoint.storage import publish, unfinished, write_rank
from parallel.engine.interface import HeldState
from parallel.errors import UserError
from parallel.mesh import Mesh
from parallel.sharding.layout import shards
from trainer.config.run import load_config
from trainer.errors import machine_error
from trainer.run_directory.checkpoints import checkpoint_path
from trainer.run_directory.run_directory import RunDirectory

_OLD = re.compile(r"step-(\d{8,})\.pt")


def convert(run_dir: Path) -> list[Path]:
    """Write each old checkpoint of a run, or of a study's nets, anew beside the old files; returns the new
    ones. The mesh that saved it does not matter. Raises UserError."""
    found = sorted([*run_dir.glob("checkpoints/step-*.pt"), *run_dir.glob("*/checkpoints/step-*.pt")])
    if not found:
        raise UserError(f"{run_dir}: holds no checkpoint of an older version")
    return [_convert(old, load_config(RunDirectory(old.parent.parent).config, []).model) for old in found]


def _convert(old: Path, net: ModelConfig) -> Path:
    match = _OLD.fullmatch(old.name)
    if match is None:
        raise UserError(f"{old}: is no checkpoint's name")
    path = checkpoint_path(old.parent, int(match[1]))
    if path.exists():
        return path
    saved = _read(old)
    mesh = Mesh(1, saved.get("offset", 1), saved.get("tensor", 1))
    with torch.device("meta"):
        whole = build_model(net)
    folder = unfinished(path)
    try:
        folder.mkdir()
        manifests, buffers = [], {}
        for number in range(mesh.model):
            rank = Mesh(1, mesh.offset, mesh.tensor, number)
            part = saved["engine"] if mesh.model == 1 else _read(old.with_suffix(f".part{number}"))
            buffers = buffers or part.get("buffers", {})
            held = shards(whole, rank)
            tensors, items = written_by(_held(part, buffers), held, rank)
            given = [(item, partial(item.piece.view, tensors[item.tensor])) for item in items]
            manifests.append(write_rank(folder, number, given))
        index = Index(
            step=int(match[1]),
            samples=saved["samples"],
            mesh={"data": 1, "offset": mesh.offset, "tensor": mesh.tensor},
            parameters={name: tuple(p.shape) for name, p in whole.named_parameters()},
            buffers={name: tuple(each.shape) for name, each in buffers.items()},
            run={"converted": old.name},
            manifests=tuple(manifests),
        )
        publish(folder, path, index)
    except OSError as error:
        raise machine_error(error, error.filename or path, "write the checkpoint") from None
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{old}: does not fit the run's net: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def _held(part: dict[str, Any], buffers: dict[str, torch.Tensor]) -> HeldState:
    kinds: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensors in part["parameters"].items():
        for kind, tensor in tensors.items():
            kinds.setdefault(kind, {})[name] = tensor.reshape(-1)
    runs = {name: (0, tensors["weight"].numel()) for name, tensors in part["parameters"].items()}
    return HeldState(runs, kinds, buffers, replicated=True)


def _read(path: Path) -> dict[str, Any]:
    """Read without running code, and page by page as it is written."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged checkpoint ({why}); delete it to convert the others") from None
