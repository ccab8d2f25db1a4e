"""The parts of a layer; its forward pass is in models/transformer.py or models/parts/class_layer.py."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.mixers.rwkv.mixing import ChannelMix
from models.parts.feed_forward import FeedForward
from models.parts.layer_scale import LayerScale
from models.parts.local_patches import LocalPatches
from models.parts.sides import Sides
from models.stages import LayerSpec, TransformerConfig


class Block(nn.Module):
    """A mixer and a feed-forward, each with its norm; recomputed, and partitioned by ZeRO-3, as one.

    Where latents and tokens are mixed, each side has norms, feed-forward and scales of its own.

    mlp_tokens    how many tokens pass the feed-forward
    tokens_after  how many tokens are left
    """

    def __init__(self, config: TransformerConfig, spec: LayerSpec) -> None:
        super().__init__()
        C, tokens = config.width, spec.tokens
        self.mixer = spec.build_mixer(C)
        latents = tokens.latents if spec.form == "residual" else 0
        one_sided = bool(getattr(self.mixer, "one_sided", False))

        def sides(build: Callable[[], nn.Module], of_tokens: bool = not one_sided) -> nn.Module:
            return Sides(latents, build(), build() if of_tokens else None) if latents else build()

        def norm() -> nn.Module:
            return nn.LayerNorm(C, config.norm_eps, bias=config.bias)

        def scale() -> nn.Module:
            return LayerScale(C, config.layer_scale) if config.layer_scale else nn.Identity()

        def feed_forward() -> nn.Module:
            if config.feed_forward == "rwkv":
                return ChannelMix(C, tokens.num_tokens, config.mlp)
            return FeedForward(C, config.mlp, config.feed_forward, config.bias)

        self.mixer_norm, self.mixer_scale = sides(norm, of_tokens=True), sides(scale)
        self.mlp_norm, self.mlp, self.mlp_scale = sides(norm), sides(feed_forward), sides(scale)
        if isinstance(self.mlp, ChannelMix):
            self.mlp.place = spec.place
        self.local: LocalPatches | None = None
        if config.local_patches and spec.form == "residual":
            assert tokens.shape is not None
            rows, columns = tokens.shape
            self.local_norm, self.local, self.local_scale = norm(), LocalPatches(C, (rows, columns)), scale()
        self.dropout = nn.Dropout(config.dropout)
        self.reduce, self.tokens_after = spec.build_reducer(C), spec.tokens_after.num_tokens
        self.reduces_inside = spec.reduces_inside
        fed = self.tokens_after if self.reduces_inside else tokens.num_tokens
        self.mlp_tokens = {"class": 1}.get(spec.form, latents if one_sided else fed)
