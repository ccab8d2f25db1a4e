"""Nets with the weights that `translution export --format safetensors` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.transformer import ModelConfig, build_model

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG = "model"  # the key of the files' metadata with the net's config as JSON


class PretrainedWeights:
    """The tensors of an export: a file, or a folder of several with the index that the Hugging Face Hub uses.

    config   of the net
    names    of its parameters and buffers
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError for anything but an export that is all there."""
        try:
            self._files = _files(path)
            with safe_open(next(iter(self._files.values())), "pt") as file:
                text = (file.metadata() or {})[CONFIG]
            self.config = TypeAdapter(ModelConfig).validate_json(text)
        except (OSError, SafetensorError, KeyError, StopIteration, ValidationError, json.JSONDecodeError):
            raise ValueError("is no file or folder of `translution export --format safetensors`") from None
        self.names = list(self._files)

    def read(self, name: str) -> Tensor:
        """A whole tensor; raises KeyError."""
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor; raises KeyError."""
        with safe_open(self._files[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def read_part(
        self,
        name: str,
        entries: Sequence[int] | None = None,
        dim: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Of a bank the `entries`, of any tensor the slice [start, stop) of `dim`; no more is read."""
        with safe_open(self._files[name], "pt") as file:
            saved = file.get_slice(name)
            ends = [slice(None)] * len(saved.get_shape())
            if ends:
                ends[dim] = slice(start, stop)
            if entries is None:
                return saved[tuple(ends)] if ends else file.get_tensor(name)
            return torch.cat([saved[(slice(entry, entry + 1), *ends[1:])] for entry in entries])


def load_pretrained(path: Path | str) -> nn.Module:
    """The net of an export, with its weights; raises ValueError for what is no export."""
    try:
        weights = PretrainedWeights(Path(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    net = build_model(weights.config)
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    odd = sorted(set(own) ^ set(weights.names))
    if odd:
        raise ValueError(f"{path}: {odd[0]} is only in {'the net' if odd[0] in own else 'the file'}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights.read(name))
    return net


def _files(path: Path) -> dict[str, Path]:
    """The file of each tensor."""
    if path.is_dir() and (path / INDEX).is_file():
        found = json.loads((path / INDEX).read_text())["weight_map"]
        return {name: path / Path(file).name for name, file in found.items()}
    file = path / ONE_FILE if path.is_dir() else path
    with safe_open(file, "pt") as opened:
        return dict.fromkeys(opened.keys(), file)
