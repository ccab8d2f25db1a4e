"""A net without numbers: shapes only, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models import ModelConfig, build_model


def outline(config: ModelConfig) -> nn.Module:
    """The config's net on the meta device, in milliseconds; raises what building it raises.

    Layers draw their weights even there, and torch's drawing on meta loads its compiler, which takes
    seconds: so nothing is drawn.
    """
    with torch.device("meta"), _Undrawn():
        return build_model(config)


_DRAWS = frozenset(
    (
        *(getattr(nn.init, name) for name in ("normal_", "uniform_", "kaiming_uniform_")),
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
    )
)


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            func = torch.empty
        return func(*args, **(kwargs or {}))
