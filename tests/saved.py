"""What a checkpoint holds, for tests that compare or damage it."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from models import ModelConfig, build_model
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import read_contents
from parallel.checkpoint.load import load_state
from parallel.engine.interface import MOMENTS, WEIGHT, HeldState
from parallel.mesh import Mesh
from parallel.sharding.layout import shards
from trainer.run_directory.checkpoints import checkpoints


def saved_state(path: Path, net: ModelConfig) -> dict[str, dict[str, Tensor]]:
    """Whole weights and moments, by kind and name."""
    with torch.device("meta"):
        held = shards(build_model(net), Mesh())
    kinds = (WEIGHT, *MOMENTS)
    tensors = {kind: {name: torch.zeros(shard.numel) for name, shard in held.items()} for kind in kinds}
    runs = {name: (0, shard.numel) for name, shard in held.items()}
    load_state(Catalogue(read_contents(path)), HeldState(runs, tensors, {}, True), held)
    return {k: {n: t.view(held[n].full) for n, t in by_name.items()} for k, by_name in tensors.items()}


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return checkpoints(run / "checkpoints")[-1]


def remove_checkpoints(run: Path, after: int = -1) -> None:
    """Delete those of steps beyond `after`."""
    found = [path for path in checkpoints(run / "checkpoints") if int(path.name[5:]) > after]
    assert found
    for path in found:
        shutil.rmtree(path)


def flip_byte(file: Path, at: int) -> None:
    """Change one byte; `at` may count from the end."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
