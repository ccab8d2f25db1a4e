"""BiXT: tokens and latents that read each other; the public code's layers and net."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.mixers.bixt.cross import LatentCross, LatentCrossConfig
from models.positions.fourier import FourierPosition
from models.positions.learned import NoPosition
from models.relatives.adapter import Adapter, Config, Shapes, Tensors, fused_linear, linear
from models.relatives.images import fourier_weights
from models.transformer import ViT, ViTConfig, build_layers

INPUTS = ("latents", "tokens")
CROSS, ALONE = "cross_attention_latents_token.", "self_attention_latents."


class _Cross(nn.Module):
    def __init__(self, mixer: LatentCross) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(each for each in self.mixer.cross(latents, tokens) if each is not None)


class _Block(nn.Module):
    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat((latents.expand(len(tokens), -1, -1), tokens), 1)
        latents, tokens = self.layers(both).split((latents.shape[1], tokens.shape[1]), 1)
        return latents, tokens


def bixt_cross(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    return _cross(cfg, param, shapes, one_sided=False)


def bixt_cross_onesided(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    return _cross(cfg, param, shapes, one_sided=True)


def _cross(cfg: Config, param: Tensors, shapes: Shapes, one_sided: bool) -> Adapter:
    (_, M, C), (_, N, token_dim) = shapes["latents"], shapes["tokens"]
    bias, inner = "rv_patches.bias" in param, int(cfg["dim_attn"])
    mixer = LatentCross(C, M, M + N, int(cfg["num_heads"]), one_sided, bias, token_dim, inner)
    outputs = ("y_latents",) if one_sided else ("y_latents", "y_tokens")
    return Adapter(_Cross(mixer), lambda param: _cross_weights(param, "", "mixer."), INPUTS, outputs)


def bixt_block(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    (_, M, C), N = shapes["latents"], shapes["tokens"][1]
    if shapes["tokens"][2] != C:
        raise ValueError(
            f"bixt_block: latents are {C} wide, tokens {shapes['tokens'][2]}; a layer has one width"
        )
    one_sided = f"{CROSS}attn.r_latents.weight" in param
    config = ViTConfig(
        image_size=(1, N),
        patch_size=1,
        position=NoPosition(),
        depth=1 if one_sided else 2,
        width=C,
        **_options(cfg, param, M, ""),  # pyright: ignore
    )
    block = _Block(build_layers(config, config.layer_specs()[:2]))

    def weights(param: Tensors) -> dict[str, Tensor]:
        return _block_weights(param, "", "layers.0.", "layers.1.latents.")

    return Adapter(block, weights, INPUTS, ("y_latents", "y_tokens"))


def bixt_net(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """image[B, channels, height, width] → logits[B, classes]."""
    _, channels, height, width = shapes["image"]
    patch = param["patch_embed.proj.weight"].shape[2:]
    depth, code = int(cfg["depth"]), param["fourier_pos_encode.token_projection.weight"].shape[1]
    config = ViTConfig(
        image_size=(height, width),
        patch_size=(patch[0], patch[1]),
        channels=channels,
        classes=len(param["head.weight"]),
        stem="projection",  # pyright: ignore
        position=FourierPosition(hidden=code // 2),
        width=int(cfg["embed_dim"]),
        depth=depth,
        **_options(cfg, param, int(cfg["num_latents"]), "blocks.0."),  # pyright: ignore
    )

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = {
            "latents": param["latents"],
            **linear(param, "patch_embed.proj", "patch_embedding.projection"),
        }
        found |= fourier_weights(param, "fourier_pos_encode.token_projection")
        for index in range(depth):
            ours = (f"layers.{2 * index}.", f"layers.{2 * index + 1}.latents.")
            found |= _block_weights(param, f"blocks.{index}.", *ours)
        return found | linear(param, "fc_norm", "norm") | linear(param, "head", "head")

    return Adapter(ViT(config), weights, ("image",), ("logits",))


def _options(cfg: Config, param: Tensors, latents: int, first: str) -> dict[str, object]:
    bias = f"{first}{CROSS}attn.rv_patches.bias" in param
    scaled = f"{first}{CROSS}ls1_lat.gamma" in param
    return {
        "pool": "latents",
        "latents": latents,
        "mixer": LatentCrossConfig(heads=int(cfg["num_heads"]), bias=bias),
        "mlp": param[f"{first}{CROSS}mlp_lat.fc1.weight"].shape[0],
        "norm_eps": float(cfg.get("norm_eps", 1e-6)),
        "layer_scale": 1.0 if scaled else None,
    }


def _cross_weights(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    found = fused_linear(param, f"{theirs}rv_patches", (f"{ours}r_tokens", f"{ours}v_tokens"))
    found |= linear(param, f"{theirs}proj_lat", f"{ours}out_latents")
    if f"{theirs}r_latents.weight" in param:
        return found | linear(param, f"{theirs}r_latents", f"{ours}r_latents")
    found |= fused_linear(param, f"{theirs}rv_latents", (f"{ours}r_latents", f"{ours}v_latents"))
    return found | linear(param, f"{theirs}proj_pat", f"{ours}out_tokens")


def _block_weights(param: Tensors, theirs: str, cross: str, alone: str) -> dict[str, Tensor]:
    found = _cross_weights(param, f"{theirs}{CROSS}attn.", f"{cross}mixer.")
    found |= fused_linear(
        param, f"{theirs}{ALONE}attn.qkv", tuple(f"{alone}mixer.{letter}" for letter in "qkv")
    ) | linear(param, f"{theirs}{ALONE}attn.proj", f"{alone}mixer.out")
    both = {
        "norm1": "mixer_norm",
        "norm2": "mlp_norm",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
        "ls1": "mixer_scale",
        "ls2": "mlp_scale",
    }
    for public, own in both.items():
        name, _, part = public.partition(".")
        own_name, _, own_part = own.partition(".")
        found |= _any(param, f"{theirs}{ALONE}{public}", alone + own)
        for suffix, side in (("lat", "latents"), ("pat", "tokens")):
            leaf, own_leaf = f".{part}" if part else "", f".{own_part}" if own_part else ""
            found |= _any(
                param, f"{theirs}{CROSS}{name}_{suffix}{leaf}", f"{cross}{own_name}.{side}{own_leaf}"
            )
    return found


def _any(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    """What there is of a linear layer, a norm or a layer scale."""
    leaves = [leaf for leaf in ("weight", "bias", "gamma") if f"{theirs}.{leaf}" in param]
    return {f"{ours}.{leaf}": param[f"{theirs}.{leaf}"] for leaf in leaves}
