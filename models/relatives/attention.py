"""Self-attention with absolute or rotary positions: the baselines of the code of arXiv 2510.10060."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.mixers.attention import Attention, AttentionConfig
from models.positions.interface import PositionConfig
from models.positions.learned import LearnedPosition, NoPosition
from models.positions.rope import RopePosition
from models.reference.table import Origin, PreNorm, rows
from models.relatives.adapter import Adapter, Config, Shapes, Tensors
from models.tokens import TokenGrid
from models.transformer import ViT, ViTConfig

PROJECTION = "to_out.0.weight"  # missing for one head as wide as the net


def self_attention(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    return _layer(cfg, param, TokenGrid(None, ungridded=shapes["x"][1]), NoPosition())


def rope1d_causal(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    return _layer(cfg, param, TokenGrid((shapes["x"][1],), causal=True), RopePosition())


def rope2d(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    rows, columns = cfg["grid"]
    return _layer(cfg, param, TokenGrid((rows, columns), class_token=bool(cfg["cls"])), RopePosition())


def vit_former_net(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """image[B, channels, height, width] → logits[B, classes]."""
    config = ViTConfig(
        image_size=_side(cfg["image_size"]),
        patch_size=_side(cfg["patch_size"]),
        channels=shapes["image"][1],
        classes=cfg["num_classes"],
        width=cfg["dim"],
        depth=cfg["depth"],
        mlp=cfg["mlp_dim"],
        mixer=AttentionConfig(heads=cfg["heads"], head_dim=cfg["dim_head"]),
        position=LearnedPosition() if "pos_embedding" in param else NoPosition(),
        pool="cls",
    )
    net = ViT(config)
    for index, layer in enumerate(net.layers):
        if f"transformer.layers.{index}.0.{PROJECTION}" not in param:
            layer.get_submodule("mixer").add_module("out", nn.Identity())
    return _by_table(net, ("image",), ("logits",))


def _layer(cfg: Config, param: Tensors, tokens: TokenGrid, position: PositionConfig) -> Adapter:
    dim, heads, head_dim = len(param["norm.weight"]), cfg["num_heads"], cfg["dim_head"]
    mixer = Attention(dim, tokens, heads, head_dim, position, project=PROJECTION in param)
    return _by_table(PreNorm(dim, mixer), ("x",), ("y",))


def _by_table(module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Adapter:
    """With the names of the table that also reads that code's saved weights."""
    table = list(rows(module, Origin(body="transformer")))

    def weights(param: Tensors) -> dict[str, Any]:
        pairs = (zip(row.names, row.split(param[row.key]), strict=True) for row in table)
        return {name: part for row in pairs for name, part in row}

    return Adapter(module, weights, inputs, outputs)


def _side(size: int | list[int]) -> int | tuple[int, int]:
    return size if isinstance(size, int) else (size[0], size[1])
