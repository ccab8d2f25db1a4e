"""Starts a run with the weights of another one: `train.init_from`, a run, a checkpoint or an export."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models import ModelConfig, build_model
from models.resharing import adapt_bank, bank_sources, refuse_other_nets
from parallel.engine.interface import WEIGHT, Engine
from parallel.errors import UserError
from parallel.processes import raise_if_any_failed, run_on_first_rank
from parallel.sharding.layout import shards
from trainer.config.run import RunConfig, load_config
from trainer.run_directory.checkpoints import checkpoints, is_checkpoint
from trainer.run_directory.restoring import weight_reader
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
    """Write this rank's part of the origin's weights, and its buffers, into the engine's."""
    read, banks = _reader(origin), bank_sources(origin.net, config.model)
    with torch.device("meta"):
        net = build_model(config.model)
    state = engine.state(moments=False)
    for name, shard in shards(net, engine.mesh).items():
        start, stop = state.runs[name]
        if start == stop:
            continue
        whole = read(name)  # one parameter at a time
        if name in banks:
            whole = adapt_bank(whole, banks[name], shard.entries)
        own = shard.take(whole)
        if own.shape != shard.shape:
            raise ValueError(f"parameter {name} is {tuple(whole.shape)} there, {shard.full} here")
        state.tensors[WEIGHT][name].copy_(own.reshape(-1)[start:stop])
    for name, buffer in state.buffers.items():
        buffer.copy_(read(name))


def _origin(path: Path) -> Origin:
    if is_checkpoint(path):
        return Origin(path.absolute(), _net_of(path.absolute().parent.parent))
    if path.is_dir():
        run = RunDirectory(path)
        net, saved = _net_of(path), checkpoints(run.checkpoints)
        if not saved:
            raise UserError("holds no checkpoint")
        return Origin(saved[-1].absolute(), net)
    if not path.is_file():
        raise UserError("no such run, checkpoint or export")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {})["model"]
        return Origin(path.absolute(), TypeAdapter(ModelConfig).validate_json(text))
    except (OSError, SafetensorError, KeyError, ValidationError):
        raise UserError(
            "is no run, no checkpoint of one, and no file of `translution export --format safetensors`"
        ) from None


def _net_of(run: Path) -> ModelConfig:
    own = RunDirectory(run).config
    if not own.is_file():
        raise UserError(f"{run} is no run directory: it has no {own.name}")
    config = load_config(own, [])
    if config.study:
        raise UserError(f"{run} is a study; name one of the runs inside it")
    return config.model


def _reader(origin: Origin) -> Callable[[str], Tensor]:
    if is_checkpoint(origin.file):
        return weight_reader(origin.file)

    def read(name: str) -> Tensor:
        with safe_open(origin.file, "pt") as file:
            return file.get_tensor(name)

    return read
