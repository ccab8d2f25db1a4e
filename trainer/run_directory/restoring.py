"""From a checkpoint to an engine; a damaged checkpoint is named and an older one used."""

from contextlib import suppress
from pathlib import Path

import torch

from models import ModelConfig, build_model
from parallel.checkpoint.blocks import Damaged
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import read_contents
from parallel.checkpoint.load import load_state
from parallel.engine.interface import Engine
from parallel.errors import UserError
from parallel.processes import gather_on_host, raise_if_any_failed, rank, run_on_first_rank
from parallel.sharding.layout import shards
from trainer.config.run import RunConfig
from trainer.faults.fault_log import note_fault
from trainer.run_directory.checkpoints import checkpoint_step, checkpoints, hide_damaged
from trainer.run_directory.run_directory import RunDirectory


def restore(engine: Engine, run: RunDirectory, config: RunConfig, resumes: bool = True) -> int:
    """Load the newest checkpoint of `run` that is not damaged; returns the samples consumed so far.

    All ranks call it. `resumes`: with the optimizer's moments, and damaged checkpoints are renamed. Raises
    UserError when there is no checkpoint, when all are damaged, for one of another net than the config's,
    and, if it resumes, for one beyond the config's last step.
    """
    train = config.train
    saved = run_on_first_rank(lambda: checkpoints(run.checkpoints))
    if not saved:
        raise UserError(f"{run.path}: holds no checkpoint")
    if not train.verify_checkpoints and rank() == 0:
        print("train.verify_checkpoints=false: checksums are not compared", flush=True)
    damages: list[str] = []
    for path in reversed(saved):
        try:
            samples = load_into(engine, path, config.model, resumes, train.verify_checkpoints)
        except Damaged as damage:
            damages.append(str(damage))
            if rank() == 0:
                print(f"{damage}; the one before it is used", flush=True)
                note_fault(run.path, "damaged checkpoint", step=checkpoint_step(path), what=str(damage))
            continue
        if resumes and engine.steps_done > train.steps:
            raise UserError(
                f"train.steps={train.steps}: {path} is of step {engine.steps_done} already; "
                f"give train.steps={engine.steps_done} or more"
            )
        if resumes and rank() == 0:
            for damaged in saved[len(saved) - len(damages) :]:
                with suppress(OSError):  # then the next start meets it again
                    hide_damaged(damaged)
        return samples
    raise_if_any_failed(UserError("; ".join(damages) + "; no checkpoint is left"))
    raise AssertionError


def load_into(engine: Engine, path: Path, net: ModelConfig, moments: bool, verify: bool = True) -> int:
    """Load a checkpoint of `net`, saved on any mesh, into `engine`; returns the samples consumed.

    moments   the optimizer's too
    verify    compare what is read with its checksums

    All ranks call it. Raises Damaged on every rank, with the checkpoint's path, and UserError for one of
    another net.
    """
    failure, damage, catalogue, held = None, None, None, {}
    try:
        with torch.device("meta"):
            held = shards(build_model(net), engine.mesh)
        catalogue = Catalogue(read_contents(path), verify)
        buffers = {name: tuple(buffer.shape) for name, buffer in engine.model.named_buffers()}
        catalogue.contents.check_net({name: shard.full for name, shard in held.items()}, buffers)
    except Damaged as error:
        damage = str(error)
    except ValueError as error:
        failure = UserError(f"{path}: does not fit this config's net: {error}")
    raise_if_any_failed(failure)
    damage = next(filter(None, gather_on_host(damage)), None)
    if damage is None:
        assert catalogue is not None
        try:
            load_state(catalogue, engine.state(moments), held)
        except Damaged as error:
            damage = str(error)
    if damage is not None:
        raise Damaged(f"{path}: damaged checkpoint ({damage})")
    assert catalogue is not None
    engine.restored(catalogue.contents.index.step)
    return catalogue.contents.index.samples


def open_weights(path: Path, verify: bool = True) -> Catalogue:
    """A checkpoint to read single weights from; raises Damaged, with its path."""
    try:
        return Catalogue(read_contents(path), verify)
    except Damaged as damage:
        raise Damaged(f"{path}: damaged checkpoint ({damage})") from None
