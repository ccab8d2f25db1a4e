"""Causal systems: the language form of token statistics, Combiner and RWKV-4."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.mixers.combiner.combiner import Combiner, Form
from models.mixers.rwkv.mixing import ChannelMix, ChannelMixConfig, TimeMix, TimeMixConfig
from models.mixers.rwkv.wkv import wkv as wkv_operator
from models.mixers.tost.tssa import TokenStatistics, TokenStatisticsConfig
from models.positions.learned import LearnedPosition, NoPosition
from models.relatives.adapter import Adapter, Builder, Config, Shapes, Tensors, linear
from models.stages import Stage
from models.tokens import TokenGrid
from models.transformer import GPT, GPTConfig, Layer


def tssa_causal(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    biases = ("c_attn.bias" in param, "c_proj.bias" in param)
    module = TokenStatistics(C, TokenGrid((N,), causal=True), int(cfg["num_heads"]), *biases)
    return Adapter(module, lambda param: _statistics_weights(param, "", "", N))


def tost_causal_block(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    config = _statistics_net(cfg, param, "", N, C, 1)
    return Adapter(Layer(config, config.layer_specs()[0]), lambda param: _statistics_layer(param, "", "", N))


def tost_gpt(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """idx[B, N] → logits[B, N, V]; with targets[B, N] also the loss."""
    N, depth = shapes["idx"][1], int(cfg["n_layer"])
    config = _statistics_net(cfg, param, "transformer.h.0.", N, int(cfg["n_embd"]), depth)

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = {"embedding.weight": param["transformer.wte.weight"]}
        found["positions"] = param["transformer.wpe.weight"][:N].unsqueeze(0)
        for index in range(depth):
            found |= _statistics_layer(param, f"transformer.h.{index}.", f"layers.{index}.", N)
        return found | linear(param, "transformer.ln_f", "norm")

    return _language_net(GPT(config), weights, shapes)


def _statistics_net(cfg: Config, param: Tensors, first: str, N: int, C: int, depth: int) -> GPTConfig:
    return GPTConfig(
        vocabulary=int(cfg.get("vocab_size", 2)),
        tokens=N,
        width=C,
        depth=depth,
        mlp=param[f"{first}mlp.c_fc.weight"].shape[0],
        mixer=TokenStatisticsConfig(
            heads=int(cfg["num_heads"]),
            bias=f"{first}attn.c_attn.bias" in param,
            out_bias=f"{first}attn.c_proj.bias" in param,
        ),
        position=LearnedPosition(),
        layer_scale=1.0,
        bias=f"{first}ln_1.bias" in param,
        norm_eps=float(cfg.get("norm_eps", 1e-5)),
        tie_embeddings=True,
    )


def _statistics_weights(param: Tensors, theirs: str, ours: str, N: int) -> dict[str, Tensor]:
    """Of the first N positions."""
    found = {f"{ours}temperature": param[f"{theirs}temp"]}
    found[f"{ours}position_bias"] = param[f"{theirs}denom_bias"][:, :N]
    return (
        found | linear(param, f"{theirs}c_attn", f"{ours}w") | linear(param, f"{theirs}c_proj", f"{ours}out")
    )


def _statistics_layer(param: Tensors, theirs: str, ours: str, N: int) -> dict[str, Tensor]:
    found = _statistics_weights(param, f"{theirs}attn.", f"{ours}mixer.", N)
    names = {"ln_1": "mixer_norm", "ln_2": "mlp_norm", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    for public, own in names.items():
        found |= linear(param, theirs + public, ours + own)
    scales = {"gamma1": "mixer_scale", "gamma2": "mlp_scale"}
    return found | {f"{ours}{own}.gamma": param[theirs + public] for public, own in scales.items()}


class _WithLoss(nn.Module):
    """A language net that gives its loss beside its logits."""

    def __init__(self, net: GPT) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids_BN: Tensor, targets_BN: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net.logits(ids_BN)
        return logits, self.net.loss_of(logits, targets_BN).view(1)


def _language_net(net: GPT, weights: Any, shapes: Shapes) -> Adapter:
    if "targets" not in shapes:
        return Adapter(net, weights, ("idx",), ("logits",))

    def inside(param: Tensors) -> dict[str, Tensor]:
        return {f"net.{name}": weight for name, weight in weights(param).items()}

    return Adapter(_WithLoss(net), inside, ("idx", "targets"), ("logits", "loss"))


def combiner(form: Form) -> Builder:
    """The causal layer of this form."""

    def build(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
        _, N, C = shapes["x"]
        heads, head_dim = param["query"].shape[1:]
        segment = int(cfg["segment"])
        if N % segment:
            raise ValueError(f"segment={segment} does not divide {N} tokens")
        module = Combiner(C, N, heads, head_dim, segment, form, causal=True)

        def weights(param: Tensors) -> dict[str, Tensor]:
            into = {"q": "query", "k": "key", "v": "value"} | (
                {"row_key": "row_key"} if form == "axial" else {}
            )
            out = {"out": "out"} | ({"row_in": "row_in"} if form == "axial" else {})
            found = {f"{own}.weight": param[public].flatten(1).T for own, public in into.items()}
            found |= {f"{own}.weight": param[public].flatten(0, 1).T for own, public in out.items()}
            if form == "axial":
                found["row_norm.weight"], found["row_norm.bias"] = (
                    param["row_norm_scale"],
                    param["row_norm_bias"],
                )
            return found

        return Adapter(module, weights)

    return build


def wkv(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    return Adapter(_Wkv(), lambda param: {}, ("time_decay", "time_first", "k", "v"))


class _Wkv(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return wkv_operator(*inputs)


def rwkv_time_mix(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    return Adapter(TimeMix(C, N), lambda param: _time_weights(param, "", ""))


def rwkv_channel_mix(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    _, N, C = shapes["x"]
    module = ChannelMix(C, N, param["key.weight"].shape[0])
    return Adapter(module, lambda param: _channel_weights(param, "", ""))


def rwkv_gpt(cfg: Config, param: Tensors, shapes: Shapes) -> Adapter:
    """idx[B, N] → logits[B, N, V]; with targets[B, N] also the loss."""
    depth, hidden = int(cfg["n_layer"]), param["blocks.0.ffn.key.weight"].shape[0]
    before = bool(cfg.get("ffn_pre", "blocks.0.ffnPre.key.weight" in param))
    stages = [Stage(layers=depth - before, mixer=TimeMixConfig())] if depth > before else []
    if before:
        first = ChannelMixConfig(hidden=param["blocks.0.ffnPre.key.weight"].shape[0])
        stages.insert(0, Stage(layers=1, mixer=first))
    config = GPTConfig(
        vocabulary=int(cfg["vocab_size"]),
        tokens=shapes["idx"][1],
        width=int(cfg["n_embd"]),
        depth=depth,
        mlp=hidden,
        stages=stages,
        position=NoPosition(),
        feed_forward="rwkv",
        embedding_norm=True,
        logit_pull=float(cfg.get("l2wrap", 0.0)),
    )

    def weights(param: Tensors) -> dict[str, Tensor]:
        found = linear(param, "emb", "embedding") | linear(param, "head", "head")
        found |= linear(param, "blocks.0.ln0", "embedding_norm") | linear(param, "ln_out", "norm")
        for index in range(depth):
            theirs, ours = f"blocks.{index}.", f"layers.{index}."
            found |= linear(param, f"{theirs}ln1", f"{ours}mixer_norm")
            found |= linear(param, f"{theirs}ln2", f"{ours}mlp_norm")
            found |= _channel_weights(param, f"{theirs}ffn.", f"{ours}mlp.")
            if before and index == 0:
                found |= _channel_weights(param, f"{theirs}ffnPre.", f"{ours}mixer.")
            else:
                found |= _time_weights(param, f"{theirs}att.", f"{ours}mixer.")
        return found

    return _language_net(GPT(config), weights, shapes)


def _time_weights(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    found = {f"{ours}{name}": param[f"{theirs}{name}"] for name in ("time_decay", "time_first")}
    found |= {f"{ours}share_{letter}": param[f"{theirs}time_mix_{letter}"] for letter in "kvr"}
    names = {"key": "key", "value": "value", "receptance": "receptance", "output": "out"}
    return found | {f"{ours}{own}.weight": param[f"{theirs}{public}.weight"] for public, own in names.items()}


def _channel_weights(param: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    found = {f"{ours}share_{letter}": param[f"{theirs}time_mix_{letter}"] for letter in "kr"}
    names = {"key": "hidden.up", "value": "hidden.down", "receptance": "receptance"}
    return found | {f"{ours}{own}.weight": param[f"{theirs}{public}.weight"] for public, own in names.items()}
