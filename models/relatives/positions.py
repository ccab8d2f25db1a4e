"""Positions inside self-attention: Shaw, BoTNet, Swin and ConViT."""

from __future__ import annotations

from torch import Tensor, nn

from models.mixers.attention import Attention
from models.positions.relative.botnet import BotnetPosition
from models.positions.relative.gpsa import GatedPosition
from models.positions.relative.shaw import ShawPosition
from models.positions.relative.swin import SwinPosition
from models.relatives.adapter import Adapter, Config, Shapes, Tensors, fused_linear, linear
from models.tokens import TokenGrid


def shaw(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    heads, tokens = cfg["num_heads"], TokenGrid((N,), causal=bool(cfg["causal"]))
    position = ShawPosition(max_distance=cfg["max_distance"])
    mixer = Attention(C, tokens, heads, C // heads, position, out_bias=False)

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = {f"attend.{name}": param[name] for name in ("relative_keys", "relative_values")}
        found |= {f"{name}.weight": param[f"{name}.weight"] for name in "qkv"}
        return found | {"out.weight": param["o.weight"]}

    return Adapter(mixer, weights)


def botnet(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """x[B, C, rows, columns] → y[B, D, rows, columns]."""
    rows, columns = cfg["grid"]
    position = BotnetPosition(scale=bool(cfg["scale_pos_embed"]))
    tokens = TokenGrid((rows, columns))
    heads, head_dim = cfg["num_heads"], cfg["dim_head"]
    mixer = Attention(shapes["x"][1], tokens, heads, head_dim, position, project=False)

    def weights(param: Tensors) -> dict[str, Tensor]:
        parts = param["qkv.weight"].flatten(1).chunk(3)
        found = {f"mixer.{name}.weight": part for name, part in zip("qkv", parts, strict=True)}
        tables = {name: param[f"pos_embed.{name}"] for name in ("height_rel", "width_rel")}
        return found | {f"mixer.attend.{name}": table for name, table in tables.items()}

    return Adapter(_OfChannels(mixer), weights)


class _OfChannels(nn.Module):
    """A mixer of channels-first images."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BND = self.mixer(x_BCHW.flatten(2).transpose(1, 2))
        return y_BND.transpose(1, 2).unflatten(2, x_BCHW.shape[2:])


def swin_bias(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    rows, columns = cfg["window"]
    tokens, heads, dim = TokenGrid((rows, columns)), cfg["num_heads"], shapes["x"][2]
    mixer = Attention(dim, tokens, heads, dim // heads, SwinPosition(), bool(cfg["qkv_bias"]))

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = fused_linear(param, "qkv", ("q", "k", "v")) | linear(param, "proj", "out")
        return found | {"attend.bias": param["relative_position_bias_table"].T}

    return Adapter(mixer, weights)


def gpsa(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """`gpsa`, and `gpsa_at_init`, which differs in its weights only."""
    rows, columns = cfg["grid"]
    tokens, heads, dim = TokenGrid((rows, columns)), cfg["num_heads"], shapes["x"][2]
    position = GatedPosition(locality=cfg["locality_strength"])
    mixer = Attention(dim, tokens, heads, dim // heads, position, bool(cfg["qkv_bias"]))

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = fused_linear(param, "qk", ("q", "k")) | linear(param, "v", "v") | linear(param, "proj", "out")
        found |= {f"attend.pos_{leaf}": param[f"pos_proj.{leaf}"] for leaf in ("weight", "bias")}
        return found | {"attend.gating": param["gating_param"]}

    return Adapter(mixer, weights)
