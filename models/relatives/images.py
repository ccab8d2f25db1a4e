"""Token Statistics Transformer and XCiT for images: their public code's layers and nets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.mixers.interface import MixerConfig
from models.mixers.tost.tssa import TokenStatistics, TokenStatisticsConfig
from models.mixers.xcit.class_attention import ClassAttention, ClassAttentionConfig
from models.mixers.xcit.xca import CrossCovariance, CrossCovarianceConfig
from models.parts.class_layer import ClassLayer
from models.parts.local_patches import LocalPatches
from models.positions.fourier import FourierPosition, fourier_code
from models.positions.learned import NoPosition
from models.relatives.adapter import Adapter, Config, Shapes, Tensors, fused_linear, linear
from models.stages import LayerSpec
from models.tokens import TokenGrid
from models.transformer import Layer, ViT, ViTConfig

STATISTICS = ("running_mean", "running_var")


def tssa_vision(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    bias = "qkv.bias" in param
    module = TokenStatistics(C, TokenGrid(None, ungridded=N), int(cfg["num_heads"]), bias)
    return Adapter(module, lambda param: mixer_weights(param))


def xca(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    module = CrossCovariance(C, N, int(cfg["num_heads"]), "qkv.bias" in param)
    return Adapter(module, lambda param: mixer_weights(param))


def class_attention(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    module = ClassAttention(C, N, int(cfg["num_heads"]), "qkv.bias" in param)
    return Adapter(module, lambda param: mixer_weights(param))


def lpi(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    module = LocalPatches(shapes["x"][2], (int(cfg["H"]), int(cfg["W"])))
    module.norm.eps, module.norm.momentum = float(cfg["bn_eps"]), float(cfg["bn_momentum"])
    return Adapter(module.train(bool(cfg["train"])), lambda param: _local_weights(param, "", ""))


def tost_block(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    mixer = TokenStatisticsConfig(heads=int(cfg["num_heads"]), bias="attn.qkv.bias" in param)
    return _block(cfg, param, C, (1, N), mixer)


def xca_block(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    mixer = CrossCovarianceConfig(heads=int(cfg["num_heads"]), bias="attn.qkv.bias" in param)
    return _block(cfg, param, shapes["x"][2], (int(cfg["H"]), int(cfg["W"])), mixer)


def _block(cfg: Config, param: Tensors, width: int, grid: tuple[int, int], mixer: MixerConfig) -> Adapter:
    config = _options(cfg, param, width, grid, 1, mixer, "")
    layer = Layer(config, config.layer_specs()[0]).train(bool(cfg.get("train", False)))
    return Adapter(layer, lambda param: layer_weights(param, "", ""))


def class_attention_block(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    mixer = ClassAttentionConfig(heads=int(cfg["num_heads"]), bias="attn.qkv.bias" in param)
    spec = LayerSpec(mixer, NoPosition(), TokenGrid(None, class_token=True, ungridded=N - 1), None, "class")
    config = _options(cfg, param, C, (1, N), 1, TokenStatisticsConfig(heads=1), "")
    layer = ClassLayer(config, spec, bool(cfg["tokens_norm"]))
    return Adapter(layer, lambda param: layer_weights(param, "", ""))


def tost_net(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    heads, bias = int(cfg["num_heads"]), "blocks.0.attn.qkv.bias" in param
    return _net(cfg, param, shapes, TokenStatisticsConfig(heads=heads, bias=bias))


def xcit_net(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    heads, bias = int(cfg["num_heads"]), "blocks.0.attn.qkv.bias" in param
    return _net(cfg, param, shapes, CrossCovarianceConfig(heads=heads, bias=bias))


def _net(cfg: Config, param: Tensors, shapes: Shapes, mixer: MixerConfig) -> Adapter:
    """image[B, channels, height, width] → logits[B, classes]."""
    _, channels, height, width = shapes["image"]
    code, depth = param["pos_embeder.token_projection.weight"].shape[1], int(cfg["depth"])
    reading = 0
    while f"cls_attn_blocks.{reading}.norm1.weight" in param:
        reading += 1
    config = _options(cfg, param, int(cfg["embed_dim"]), (height, width), depth, mixer, "blocks.0.")
    values = config.model_dump() | {
        "mixer": mixer,
        "patch_size": int(cfg["patch_size"]),
        "channels": channels,
        "classes": int(cfg["num_classes"]),
        "stem": "convolutions",
        "position": FourierPosition(hidden=code // 2),
        "pool": "class_attention",
        "class_attention": ClassAttentionConfig(
            layers=reading,
            heads=int(cfg["num_heads"]),
            bias="cls_attn_blocks.0.attn.qkv.bias" in param,
            norm_tokens=bool(cfg["tokens_norm"]),
        ),
    }
    net = ViT(ViTConfig.model_validate(values)).train(bool(cfg.get("train", False)))

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = {
            "class_token": param["cls_token"],
            **linear(param, "norm", "norm"),
            **linear(param, "head", "head"),
        }
        found |= fourier_weights(param, "pos_embeder.token_projection")
        step = 0
        while f"patch_embed.proj.{2 * step}.0.weight" in param:
            found[f"patch_embedding.conv{step}.weight"] = param[f"patch_embed.proj.{2 * step}.0.weight"]
            found |= _norm_weights(param, f"patch_embed.proj.{2 * step}.1", f"patch_embedding.norm{step}")
            step += 1
        for index in range(depth):
            found |= layer_weights(param, f"blocks.{index}.", f"layers.{index}.")
        for index in range(reading):
            found |= layer_weights(param, f"cls_attn_blocks.{index}.", f"layers.{depth + index}.")
        return found

    return Adapter(net, weights, ("image",), ("logits",))


def _options(
    cfg: Config, param: Tensors, width: int, size: tuple[int, int], depth: int, mixer: MixerConfig, first: str
) -> ViTConfig:
    """A net of such layers on a grid of single pixels; `first` is the prefix of the first's parameters."""
    return ViTConfig(
        image_size=size,
        patch_size=1,
        pool="mean",
        width=width,
        depth=depth,
        mlp=param[f"{first}mlp.fc1.weight"].shape[0],
        mixer=mixer,  # pyright: ignore[reportArgumentType]
        position=NoPosition(),
        layer_scale=1.0 if f"{first}gamma1" in param else None,
        local_patches=f"{first}local_mp.conv1.weight" in param,
        norm_eps=float(cfg.get("norm_eps", 1e-6)),
    )


def fourier_pos(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """Nothing → code[2·hidden, H, W]; the grid's H and W are options or inputs."""
    H, W = (int(shapes[side] if side in shapes else cfg[side]) for side in ("H", "W"))  # pyright: ignore
    module = _Code((H, W), int(cfg["hidden_dim"]), float(cfg["temperature"]))
    return Adapter(module, lambda param: {}, tuple(shapes), ("code",))


class _Code(nn.Module):
    def __init__(self, grid: tuple[int, int], hidden: int, temperature: float) -> None:
        super().__init__()
        self.grid, self.hidden, self.temperature = grid, hidden, temperature

    def forward(self, *_: int) -> Tensor:
        code = fourier_code(self.grid, self.hidden, self.temperature, torch.device("cpu"))
        return code.T.unflatten(1, self.grid)


def fourier_weights(param: Tensors, theirs: str) -> dict[str, Tensor]:
    """A linear layer, of a 1×1 convolution."""
    projection = linear(param, theirs, "positions.projection")
    return projection | {"positions.projection.weight": param[f"{theirs}.weight"].flatten(1)}


def mixer_weights(param: Tensors, theirs: str = "", ours: str = "") -> dict[str, Tensor]:
    """Of TSSA, XCA, class attention or plain attention, by the names that there are."""
    if f"{theirs}temp" in param:
        found = {f"{ours}temperature": param[f"{theirs}temp"], **linear(param, f"{theirs}qkv", f"{ours}w")}
        return found | linear(param, f"{theirs}to_out.0", f"{ours}out")
    found = fused_linear(param, f"{theirs}qkv", (f"{ours}q", f"{ours}k", f"{ours}v"))
    if f"{theirs}temperature" in param:
        found[f"{ours}temperature"] = param[f"{theirs}temperature"]
    return found | linear(param, f"{theirs}proj", f"{ours}out")


def layer_weights(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    """Of a block with pre-norms and layer scales, and local patch interaction where it has any."""
    found = mixer_weights(param, f"{theirs}attn.", f"{ours}mixer.")
    names = {"norm1": "mixer_norm", "norm2": "mlp_norm", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}
    for public, own in names.items():
        found |= linear(param, theirs + public, ours + own)
    for public, own in {"gamma1": "mixer_scale", "gamma2": "mlp_scale"}.items():
        if theirs + public in param:
            found[f"{ours}{own}.gamma"] = param[theirs + public]
    if f"{theirs}local_mp.conv1.weight" in param:
        found |= linear(param, f"{theirs}norm3", f"{ours}local_norm")
        if f"{theirs}gamma3" in param:
            found[f"{ours}local_scale.gamma"] = param[f"{theirs}gamma3"]
        found |= _local_weights(param, f"{theirs}local_mp.", f"{ours}local.")
    return found


def _local_weights(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    first, second = (
        linear(param, f"{theirs}conv{n}", f"{ours}{name}") for n, name in ((1, "first"), (2, "second"))
    )
    return first | second | _norm_weights(param, f"{theirs}bn", f"{ours}norm")


def _norm_weights(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    return linear(param, theirs, ours) | {f"{ours}.{name}": param[f"{theirs}.{name}"] for name in STATISTICS}
