"""The net of a run's newest checkpoint, or of an export, to be tried on one device."""

from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from models import GPT, ModelConfig, ViT, build_model
from parallel.errors import UserError
from trainer.config.run import DataConfig
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_engine, read_run_config, restore


class LoadedNet(NamedTuple):
    """A net in evaluation mode, and the data that its run trained on; an export does not say which."""

    net: ViT | GPT
    data: DataConfig | None


def load_net(path: Path, device: str) -> LoadedNet:
    """From a run's directory or a file of `translution export`; `device` is auto, cpu or cuda.

    Raises UserError for what is neither, and for a run without a checkpoint.
    """
    if path.is_dir():
        config = read_run_config(path, [f"device={device}"])
        if config.study:
            raise UserError(f"{path}: is a study; name one of the runs inside it")
        engine = build_engine(config)
        restore(engine, RunDirectory(path), config.model)
        assert isinstance(engine.model, ViT | GPT)
        return LoadedNet(engine.model.eval(), config.data)
    if not path.exists():
        raise UserError(f"{path}: no such run or export")
    return LoadedNet(_read_export(path).eval().to(_device(device)), None)


def _read_export(path: Path) -> ViT | GPT:
    try:
        with safe_open(path, "pt") as file:
            config = TypeAdapter(ModelConfig).validate_json((file.metadata() or {})["model"])
            net = build_model(config)
            net.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, strict=False)  # noqa: SIM118
        return net
    except (OSError, SafetensorError, KeyError, ValidationError):
        raise UserError(
            f"{path}: is no run, and no file of `translution export --format safetensors`"
        ) from None


def _device(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable CUDA device")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
