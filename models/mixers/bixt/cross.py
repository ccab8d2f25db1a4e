"""Bi-directional cross-attention: one matrix of similarities serves latents and tokens alike. Linear in N."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.mixers.attention import AttentionConfig
from models.mixers.interface import Axes, Mixer, MixerConfig, head_axes, head_width
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class LatentCross(Mixer):
    """x[B, M + N, C] → [B, M + N, C], M latents first (arXiv 2402.12138, section 3.2).

    Both sides have one projection r for similarities and one for values; S = r_latents·r_tokensᵀ/√E. Latents
    read the tokens' values by its softmax over tokens, tokens those of the latents by its softmax over
    latents. One-sided, as in the last layer of a net, the tokens' part of the output is zero.
    """

    def __init__(
        self,
        dim: int,
        latents: int,
        num_tokens: int,
        heads: int,
        one_sided: bool = False,
        bias: bool = True,
        token_dim: int | None = None,
        inner: int | None = None,
    ) -> None:
        super().__init__(dim, num_tokens)
        token_dim, inner = token_dim or dim, inner or dim
        self.heads, self.latents, self.one_sided = heads, latents, one_sided
        self.r_latents, self.r_tokens = nn.Linear(dim, inner, bias), nn.Linear(token_dim, inner, bias)
        self.v_tokens, self.out_latents = nn.Linear(token_dim, inner, bias), nn.Linear(inner, dim)
        if not one_sided:
            self.v_latents, self.out_tokens = nn.Linear(dim, inner, bias), nn.Linear(inner, token_dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = self.head_input(x_BNC)
        latents, tokens = self.cross(x_BNC[:, : self.latents], x_BNC[:, self.latents :])
        if tokens is None:
            tokens = latents.new_zeros(len(x_BNC), x_BNC.shape[1] - self.latents, latents.shape[-1])
        return torch.cat((latents, tokens), 1)

    def cross(self, latents_BMC: Tensor, tokens_BNC: Tensor) -> tuple[Tensor, Tensor | None]:
        """What latents and tokens gain, None for tokens if one-sided; their widths may differ."""
        r_latents, r_tokens = self._heads(self.r_latents, latents_BMC), self._heads(self.r_tokens, tokens_BNC)
        similar_BHMN = r_latents * r_latents.shape[-1] ** -0.5 @ r_tokens.transpose(-2, -1)
        read_BHME = similar_BHMN.softmax(-1).to(r_tokens.dtype) @ self._heads(self.v_tokens, tokens_BNC)
        for_latents = self.out_latents(read_BHME.transpose(1, 2).flatten(2))
        if self.one_sided:
            return for_latents, None
        weights_BHNM = similar_BHMN.softmax(-2).transpose(-2, -1).to(r_tokens.dtype)
        read_BHNE = weights_BHNM @ self._heads(self.v_latents, latents_BMC)
        return for_latents, self.out_tokens(read_BHNE.transpose(1, 2).flatten(2))

    def _heads(self, project: nn.Module, x_BNC: Tensor) -> Tensor:
        return project(x_BNC).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def tokens_out(self, linear: str) -> int:
        return self.latents if linear == "out_latents" else self.num_tokens - self.latents

    def axes(self) -> Axes:
        if self.one_sided:
            return head_axes(self, into=("r_latents", "r_tokens", "v_tokens"), out=("out_latents",))
        into = ("r_latents", "r_tokens", "v_tokens", "v_latents")
        return head_axes(self, into=into, out=("out_latents", "out_tokens"))


class LatentCrossConfig(MixerConfig):
    """The `mixer` section for bi-directional cross-attention, of an image net with latents, which also
    attend to each other. Heads share the net's width.

    one_sided  tokens read no latents; so it is in a net's last layer, whatever the config says
    bias  of the projections into the heads
    """

    title: ClassVar[str] = "Latent cross-attention"
    latents: ClassVar[bool] = True

    kind: Literal["bixt"] = "bixt"
    heads: int = Field(default=6, ge=1)
    bias: bool = True
    one_sided: bool = False

    def refuses_tokens(self, tokens: TokenGrid) -> str | None:
        if not tokens.latents and not tokens.causal:
            return "attends between tokens and latents: it needs model.latents above 0"
        return super().refuses_tokens(tokens)

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> LatentCross:
        head_width(dim, self.heads)
        return LatentCross(dim, tokens.latents, tokens.num_tokens, self.heads, self.one_sided, self.bias)

    def for_last_layer(self) -> LatentCrossConfig:
        return self.model_copy(update={"one_sided": True})

    def of_latents(self, dim: int) -> AttentionConfig:
        return AttentionConfig(heads=self.heads, head_dim=head_width(dim, self.heads), bias=self.bias)
