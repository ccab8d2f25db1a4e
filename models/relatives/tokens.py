"""Fewer tokens: EViT, DynamicViT, density peaks, and token decoupling and merging."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.mixers.attention import Attention, AttentionConfig
from models.positions.learned import LearnedPosition, NoPosition
from models.reducers.clusters import density_peaks, merged
from models.reducers.decouple import DecoupleConfig
from models.reducers.dynamic import DynamicConfig, Predictor
from models.reducers.interface import KeepConfig
from models.reducers.schedule import keep_at
from models.reducers.selection import EvitConfig
from models.relatives.adapter import Adapter, Config, Shapes, Tensors, fused_linear, linear
from models.relatives.images import layer_weights
from models.stages import Stage
from models.tokens import TokenGrid
from models.transformer import ViT, ViTConfig, build_layers


def evit_block(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """x[B, N, C] → y[B, M, C], a class token first, through all blocks of `param`."""
    _, N, C = shapes["x"]
    depth = _depth(param)
    config = _options(cfg, param, C, (1, N - 1), 1, _evit(cfg, depth))
    layers = build_layers(config.model_copy(update={"position": NoPosition()}), None)
    return Adapter(layers, lambda param: _layers(param, depth, ""))


def evit_net(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """image[B, channels, height, width] → logits[B, classes]."""
    return _net(cfg, param, shapes, _evit(cfg, _depth(param)))


def dynamicvit_net(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """image[B, channels, height, width] → logits[B, classes], as in inference."""
    places, ratios = list(cfg["pruning_loc"]), list(cfg["token_ratio"])
    bounds = [*places, _depth(param)]
    if not places or bounds[0] < 1 or sorted(set(bounds)) != bounds or len(ratios) != len(places):
        raise ValueError(
            f"pruning_loc {places}, token_ratio {ratios}: a ratio for each later layer is needed"
        )
    stages = [Stage(layers=places[0], reduce=DynamicConfig(ratio=ratios[0]))]
    for index, (start, stop) in enumerate(pairwise(bounds), 1):
        reduce = DynamicConfig(ratio=ratios[index]) if index < len(ratios) else None
        stages.append(Stage(layers=stop - start, reduce=reduce))
    adapter = _net(cfg, param, shapes, stages)
    adapter.module.eval()

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = adapter.weights(param)
        for index, place in enumerate(places):
            theirs = f"score_predictor.{index}."
            found |= _predictor(param, theirs, f"layers.{place - 1}.reduce.predictor.")
        return found

    return adapter._replace(weights=weights)


def _evit(cfg: Config, depth: int) -> list[Stage]:
    """A stage of one layer each; `keep_rate` is that of all blocks, or a list."""
    rates: Any = cfg["keep_rate"]
    rates = rates if isinstance(rates, list) else [rates] * depth
    if len(rates) != depth:
        raise ValueError(f"keep_rate has {len(rates)} numbers for {depth} blocks")
    return [Stage(layers=1, reduce=EvitConfig(keep=rate, fuse=bool(cfg["fuse"]))) for rate in rates]


def _options(
    cfg: Config, param: Tensors, width: int, size: tuple[int, int], patch: int, stages: list[Stage]
) -> ViTConfig:
    heads = int(cfg["num_heads"])
    return ViTConfig(
        image_size=size,
        patch_size=patch,
        channels=param["patch_embed.proj.weight"].shape[1] if "patch_embed.proj.weight" in param else 1,
        classes=len(param["head.weight"]) if "head.weight" in param else 1,
        stem="projection",  # pyright: ignore[reportArgumentType]
        width=width,
        depth=sum(stage.layers for stage in stages),
        mlp=len(param["blocks.0.mlp.fc1.weight"]),
        mixer=AttentionConfig(heads=heads, head_dim=width // heads, bias="blocks.0.attn.qkv.bias" in param),
        stages=stages,
        position=LearnedPosition(),
        norm_eps=float(cfg.get("norm_eps", 1e-6)),
    )


def _net(cfg: Config, param: Tensors, shapes: Shapes, stages: list[Stage]) -> Adapter:
    _, _, height, width = shapes["image"]
    net = ViT(_options(cfg, param, int(cfg["embed_dim"]), (height, width), int(cfg["patch"]), stages))
    depth = len(net.layers)

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = {"class_token": param["cls_token"], "positions": param["pos_embed"]}
        found |= linear(param, "patch_embed.proj", "patch_embedding.projection")
        found |= linear(param, "norm", "norm") | linear(param, "head", "head")
        return found | _layers(param, depth, "layers.")

    return Adapter(net, weights, ("image",), ("logits",))


def _depth(param: Tensors) -> int:
    depth = 0
    while f"blocks.{depth}.norm1.weight" in param:
        depth += 1
    return depth


def _layers(param: Tensors, depth: int, ours: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for index in range(depth):
        found |= layer_weights(param, f"blocks.{index}.", f"{ours}{index}.")
    return found


def evit_schedule(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """epoch[…], at its first iteration or at `iteration`[…] of it → keep_rate[…]."""
    inputs = ("epoch", "iteration") if "iteration" in shapes else ("epoch",)
    return Adapter(_Schedule(cfg), lambda param: {}, inputs, ("keep_rate",))


class _Schedule(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.epoch = int(cfg["iters_per_epoch"])
        self.start, self.end = (self.epoch * int(cfg[name]) for name in ("warmup_epochs", "total_epochs"))
        self.keep = float(cfg["base_keep_rate"])

    def forward(self, epoch: Tensor, iteration: Tensor | None = None) -> Tensor:
        step = epoch * self.epoch + (0 if iteration is None else iteration)
        rates = [keep_at(int(n), self.start, self.end, self.keep) for n in step.flatten()]
        return torch.tensor(rates, dtype=torch.float64).view(step.shape)


def dynamicvit_predictor(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """x[B, N, C], policy[B, N, 1] → log_scores[B, N, 2]."""
    module = _OfPolicy(Predictor(shapes["x"][2]))
    return Adapter(module, lambda param: _predictor(param, "", "module."), ("x", "policy"), ("log_scores",))


def _predictor(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    names = {"in_conv.0": "norm", "in_conv.1": "enter"}
    names |= {"out_conv.0": "first", "out_conv.2": "second", "out_conv.4": "last"}
    return {
        key: t for name, own in names.items() for key, t in linear(param, theirs + name, ours + own).items()
    }


def dynamicvit_masked_attention(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """x[B, N, C], policy[B, N, 1], a class token's included → y."""
    _, N, C = shapes["x"]
    heads = int(cfg["num_heads"])
    mixer = Attention(C, TokenGrid(None, ungridded=N), heads, C // heads, bias="qkv.bias" in param)

    def weights(param: Tensors) -> dict[str, Tensor]:
        return fused_linear(param, "qkv", ("module.q", "module.k", "module.v")) | linear(
            param, "proj", "module.out"
        )

    return Adapter(_OfPolicy(mixer), weights, ("x", "policy"))


class _OfPolicy(nn.Module):
    """A module that takes kept[B, N], given as policy[B, N, 1]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_BNC: Tensor, policy_BN1: Tensor) -> Tensor:
        return self.module(x_BNC, policy_BN1.squeeze(2))


def dpc_knn(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """x[B, N, C], weight[B, N, 1] → y[B, K, C], cluster[B, N]; with cluster[B, N] given, only y."""
    options = int(cfg["clusters"]), int(cfg["neighbours"]), float(cfg.get("merge_eps", 1e-6))
    given = "cluster" in shapes
    inputs = ("x", "weight", "cluster") if given else ("x", "weight")
    return Adapter(_Clusters(*options), lambda param: {}, inputs, ("y",) if given else ("y", "cluster"))


class _Clusters(nn.Module):
    def __init__(self, count: int, neighbours: int, least: float) -> None:
        super().__init__()
        self.count, self.neighbours, self.least = count, neighbours, least

    def forward(self, x_BNC: Tensor, weight_BN1: Tensor, cluster_BN: Tensor | None = None) -> Any:
        found = density_peaks(x_BNC, self.count, self.neighbours) if cluster_BN is None else cluster_BN
        y_BKC = merged(x_BNC, weight_BN1.squeeze(2), found, self.count, self.least)
        return (y_BKC, found) if cluster_BN is None else y_BKC


def decouple_merge(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """tokens[B, N, C], class_attention[B, N] → y[B, K, C]."""
    _, N, C = shapes["tokens"]
    config: KeepConfig = DecoupleConfig(
        keep=cfg["keep_rate"], cluster_share=cfg["cluster_share"], neighbours=cfg["neighbours"]
    )
    module = config.build(C, TokenGrid(None, ungridded=N))
    return Adapter(module, lambda param: {}, ("tokens", "class_attention"))
