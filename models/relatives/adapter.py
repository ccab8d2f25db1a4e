"""A module of ours in the terms of another system's public code: its names of weights, inputs, outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Tensors = Mapping[str, Tensor]
Config = Mapping[str, Any]


class Adapter(NamedTuple):
    """A module of ours and what its parts are called in the public code.

    module    built on the meta device; takes the inputs in the order of their names
    weights   public parameters and buffers → ours by our names, by differentiable views and copies
    inputs, outputs   their names
    """

    module: nn.Module
    weights: Callable[[Tensors], dict[str, Tensor]]
    inputs: tuple[str, ...] = ("x",)
    outputs: tuple[str, ...] = ("y",)


Shapes = Mapping[str, tuple[int, ...]]
Builder = Callable[[Config, Tensors, Shapes], Adapter]  # options, weights and buffers, shapes of the inputs


class Relative:
    """A system with given weights, called with its inputs by name: `net(x=x)["y"]`.

    It holds no weights of its own: `param` and `buffer` are used as they are at each call, gradients reach
    the tensors of `param`, and statistics are updated in `buffer`. Raises ValueError, in one line, for
    options, weights or inputs that are missing, unknown or of another shape.
    """

    def __init__(
        self, system: str, builder: Builder, cfg: Config, param: Tensors, buffer: Tensors | None = None
    ) -> None:
        self.system, self.param, self.buffer = system, dict(param), dict(buffer or {})
        self.cfg = {key: getattr(value, "tolist", lambda value=value: value)() for key, value in cfg.items()}
        self._builder = builder
        self._adapters: dict[tuple[Any, ...], Adapter] = {}

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        adapter = self.adapter(**inputs)
        weights = adapter.weights(self.param | self.buffer)
        found = functional_call(adapter.module, weights, tuple(inputs[name] for name in adapter.inputs))
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(adapter.outputs, found, strict=True))

    def adapter(self, **inputs: Tensor) -> Adapter:
        """The module for inputs of these shapes; its own weights are on the meta device."""
        shapes = {name: tuple(x.shape) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        key = tuple(sorted(shapes.items()))
        if key not in self._adapters:
            self._adapters[key] = self._checked(shapes)
        return self._adapters[key]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by their public names."""
        yield from self.param.items()

    def _checked(self, shapes: Shapes) -> Adapter:
        cfg, given, inputs = _Recorded(self.cfg), _Recorded(self.param | self.buffer), _Recorded(shapes)
        try:
            with torch.device("meta"):
                adapter = self._builder(cfg, given, inputs)
            ours = adapter.weights(given)
        except KeyError as error:
            missing = {"cfg": cfg, "param": given, "input": inputs}
            where = next((name for name, read in missing.items() if error.args[0] in read.missing), "cfg")
            raise ValueError(f"system {self.system}: {where} has no {error.args[0]}") from error
        if shapes.keys() != set(adapter.inputs):
            raise ValueError(f"system {self.system}: takes {adapter.inputs}, was given {tuple(shapes)}")
        if unknown := self.param.keys() - given.read:
            raise ValueError(f"system {self.system}: has no parameter {', '.join(sorted(unknown))}")
        held = dict(adapter.module.named_parameters()) | dict(adapter.module.named_buffers())
        for name, empty in held.items():
            if name not in ours:
                raise ValueError(f"system {self.system}: nothing in param gives {name}")
            if ours[name].shape != empty.shape:
                found, fits = tuple(ours[name].shape), tuple(empty.shape)
                raise ValueError(f"system {self.system}: {name} is {found} in param; cfg needs {fits}")
        return adapter


class _Recorded(dict[str, Any]):
    """Remembers which values were read, and which were looked for in vain."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self.read: set[str] = set()
        self.missing: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        self.missing.add(name)
        raise KeyError(name)


def linear(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    """The weight, and the bias where there is one, of a linear layer or norm under our name."""
    names = [name for name in ("weight", "bias") if name == "weight" or f"{theirs}.{name}" in param]
    return {f"{ours}.{name}": param[f"{theirs}.{name}"] for name in names}


def fused_linear(param: Tensors, theirs: str, ours: tuple[str, ...]) -> dict[str, Tensor]:
    """Linear layers that the public code stacks in one, along the outputs: [q | k | v]."""
    found: dict[str, Tensor] = {}
    for leaf, stacked in linear(param, theirs, "").items():
        parts = stacked.chunk(len(ours))  # the leaf begins with a full stop
        found |= {name + leaf: part for name, part in zip(ours, parts, strict=True)}
    return found
