"""Starts a run with the weights of another one: `train.init_from`, a run, a checkpoint or an export."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from models import ModelConfig, build_model
from models.pretrained.weights import PretrainedWeights
from models.resharing import Sources, adapt_bank, bank_sources, refuse_other_nets
from parallel.checkpoint.blocks import Damaged
from parallel.checkpoint.load import read_part
from parallel.engine.interface import WEIGHT, Engine
from parallel.errors import UserError
from parallel.processes import raise_if_any_failed, run_on_first_rank
from parallel.sharding.layout import Shard, shards
from parallel.sharding.pretrained import read_shard
from trainer.config.run import RunConfig, load_config
from trainer.run_directory.checkpoints import checkpoints, is_checkpoint
from trainer.run_directory.restoring import open_weights
from trainer.run_directory.run_directory import RunDirectory


class Origin(NamedTuple):
    """A file of weights, and the net that has them."""

    file: Path
    net: ModelConfig


def find_weights(config: RunConfig) -> Origin:
    """The file that `train.init_from` means; raises UserError unless its weights can become this net's.

    A run directory means its newest checkpoint.
    """
    path = config.train.init_from
    assert path is not None
    try:
        origin = _origin(path)
        refuse_other_nets(origin.net, config.model)
    except (UserError, ValueError) as error:
        raise UserError(f"train.init_from={path}: {error}") from None
    return origin


def load_weights(engine: Engine, run: RunDirectory, config: RunConfig) -> None:
    """Give `engine` the weights that `train.init_from` names, with this config's share rules; the optimizer
    stays new. Every rank calls it and keeps its own part. Raises UserError for a damaged file."""
    origin = run_on_first_rank(lambda: find_weights(config))  # a source that still trains may get newer ones
    failure = None
    try:
        _fill(engine, origin, config)
    except UserError as error:
        failure = error
    except (KeyError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        failure = UserError(f"train.init_from={config.train.init_from}: does not fit this net: {why}")
    raise_if_any_failed(failure)
    engine.restored(steps_done=0)
    print(f"weights from {origin.file}", flush=True)
    run.save_origin({"file": str(origin.file), "model": origin.net.model_dump(mode="json")})


@torch.no_grad()
def _fill(engine: Engine, origin: Origin, config: RunConfig) -> None:
    """Write this rank's part of the origin's weights, and its buffers, into the engine's; reads no other
    part, of one parameter at a time."""
    source, banks = _source(origin, config.train.verify_checkpoints), bank_sources(origin.net, config.model)
    with torch.device("meta"):
        net = build_model(config.model)
    state = engine.state(moments=False)
    for name, shard in shards(net, engine.mesh).items():
        start, stop = state.runs[name]
        if start == stop:
            continue
        own = _adapted(source, name, shard, banks[name]) if name in banks else source.read(name, shard)
        state.tensors[WEIGHT][name].copy_(own.reshape(-1)[start:stop])
    for name, buffer in state.buffers.items():
        buffer.copy_(source.read(name, Shard(tuple(buffer.shape))))


def _adapted(source: "_Source", name: str, shard: Shard, sources: Sources) -> Tensor:
    """The entries that a mesh place holds of a bank, from the old entries that they come from."""
    entries = range(shard.full[0]) if shard.entries is None else shard.entries
    needed = sorted({old for entry in entries for old in sources[entry]})
    place = {old: number for number, old in enumerate(needed)}
    old = replace(shard, full=(source.shape(name)[0], *shard.full[1:]), entries=tuple(needed))
    moved = tuple(Counter({place[o]: n for o, n in sources[entry].items()}) for entry in entries)
    return adapt_bank(source.read(name, old).float(), moved)


class _Source(NamedTuple):
    """Shapes of whole weights, and parts of them, by name."""

    shape: Callable[[str], tuple[int, ...]]
    read: Callable[[str, Shard], Tensor]


def _source(origin: Origin, verify: bool) -> _Source:
    if is_checkpoint(origin.file):
        catalogue = open_weights(origin.file, verify)

        def read(name: str, shard: Shard) -> Tensor:
            try:
                return read_part(catalogue, name, shard)
            except Damaged as damage:
                raise Damaged(f"{origin.file}: damaged checkpoint ({damage})") from None

        return _Source(lambda name: catalogue.contents.index.parameters[name], read)
    weights = PretrainedWeights(origin.file)
    return _Source(weights.shape, lambda name, shard: read_shard(weights, name, shard))


def _origin(path: Path) -> Origin:
    if is_checkpoint(path):
        return Origin(path.absolute(), _net_of(path.absolute().parent.parent))
    if path.is_dir() and RunDirectory(path).config.is_file():
        run = RunDirectory(path)
        net, saved = _net_of(path), checkpoints(run.checkpoints)
        if not saved:
            raise UserError("holds no checkpoint")
        return Origin(saved[-1].absolute(), net)
    if not path.exists():
        raise UserError("no such run, checkpoint or export")
    try:
        return Origin(path.absolute(), PretrainedWeights(path).config)
    except ValueError as error:
        raise UserError(f"is no run, no checkpoint of one, and {error}") from None


def _net_of(run: Path) -> ModelConfig:
    own = RunDirectory(run).config
    if not own.is_file():
        raise UserError(f"{run} is no run directory: it has no {own.name}")
    config = load_config(own, [])
    if config.study:
        raise UserError(f"{run} is a study; name one of the runs inside it")
    return config.model
