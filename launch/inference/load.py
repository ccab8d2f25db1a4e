"""The net of a run's newest checkpoint, or of an export, to be tried on one device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models import GPT, ModelConfig, ViT, load_pretrained
from models.pretrained.weights import PretrainedWeights
from parallel.errors import UserError
from trainer.config.run import DataConfig, RunConfig
from trainer.run_directory.restoring import restore
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_evaluator, read_run_config


@dataclass(frozen=True)
class SavedNet:
    """A run's newest checkpoint, or an export, of which the config has been read and no weight.

    data   what the run trained on; an export does not say
    load   the net with its weights, in evaluation mode on the device
    """

    model: ModelConfig
    data: DataConfig | None
    load: Callable[[], ViT | GPT]


def find_net(path: Path, device: str) -> SavedNet:
    """A run's directory, or a file or folder of `translution export`; `device` is auto, cpu or cuda.

    Raises UserError for what is neither; `load` does for a run without a checkpoint.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run or export")
    if not RunDirectory(path).config.is_file():
        try:
            model, where = PretrainedWeights(path).config, _device(device)
        except ValueError as error:
            raise UserError(f"{path}: is no run, and {error}") from None
        return SavedNet(model, None, lambda: _read_export(path).eval().to(where))
    config = read_run_config(path, [f"device={device}"])
    if config.study:
        raise UserError(f"{path}: is a study; name one of the runs inside it")
    return SavedNet(config.model, config.data, lambda: _newest(path, config))


def load_net(path: Path, device: str) -> ViT | GPT:
    """The net of `find_net`, with its weights."""
    return find_net(path, device).load()


def _newest(path: Path, config: RunConfig) -> ViT | GPT:
    engine = build_evaluator(config)
    restore(engine, RunDirectory(path), config, resumes=False)
    assert isinstance(engine.model, ViT | GPT)
    return engine.model.eval()


def _read_export(path: Path) -> ViT | GPT:
    net = load_pretrained(path)
    assert isinstance(net, ViT | GPT)
    return net


def _device(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable CUDA device")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
