"""The two halves of an RWKV-4 layer, on tokens mixed with the token before (the public v4 code)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw, constants, orthogonal
from models.mixers.interface import Mixer, MixerConfig
from models.mixers.rwkv.wkv import wkv
from models.parts.feed_forward import FeedForward
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid


class _Shifted(Mixer):
    """A mixer of each token with the one before, channel by channel by a learned share [1, 1, C]."""

    def mixed(self, x_BNC: Tensor, share: Tensor) -> Tensor:
        return torch.lerp(F.pad(x_BNC, (0, 0, 1, -1)), x_BNC, share.to(x_BNC.dtype))

    @property
    def depth_left(self) -> float:
        """1 in a net's first layer, falling to 1/layers in its last."""
        index, layers = self.place
        return 1 - index / layers

    def share_draw(self, power: float, plus: float = 0.0) -> Draw:
        """(c/C)^power + plus of channel c."""
        return constants([(c / self.dim) ** power + plus for c in range(self.dim)])

    def no_decay(self) -> set[str]:
        return {"share_k", "share_v", "share_r"}


class TimeMix(_Shifted):
    """x[B, N, C] → [B, N, C], causal: `wkv` of keys and values, gated by a receptance. It has no heads."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__(dim, num_tokens)
        self.time_decay, self.time_first = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.share_k, self.share_v, self.share_r = (nn.Parameter(torch.ones(1, 1, dim)) for _ in range(3))
        self.key, self.value, self.receptance, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x_BNC: Tensor) -> Tensor:
        k, v = self.key(self.mixed(x_BNC, self.share_k)), self.value(self.mixed(x_BNC, self.share_v))
        gate = self.receptance(self.mixed(x_BNC, self.share_r)).sigmoid()
        return self.out(gate * wkv(self.time_decay, self.time_first, k, v))

    def draws(self) -> dict[str, Draw]:
        """As the public code intends them: see `orthogonal`; three of the four matrices begin at zero."""
        index, layers = self.place
        C, a, b = self.dim, index / max(1, layers - 1), self.depth_left
        decay = [-5 + 8 * (c / max(1, C - 1)) ** (0.7 + 1.3 * a) for c in range(C)]
        first = [math.log(0.3) + 0.5 * ((c + 1) % 3 - 1) for c in range(C)]
        return {
            "time_decay": constants(decay),
            "time_first": constants(first),
            "share_k": self.share_draw(b),
            "share_v": self.share_draw(b, 0.3 * a),
            "share_r": self.share_draw(b / 2),
            "key.weight": Draw(),
            "value.weight": orthogonal(),
            "receptance.weight": Draw(),
            "out.weight": Draw(),
        }


class ChannelMix(_Shifted):
    """x[B, N, C] → [B, N, C], causal: a feed-forward with relu² whose outputs a receptance gates."""

    def __init__(self, dim: int, num_tokens: int, hidden: int) -> None:
        super().__init__(dim, num_tokens)
        self.share_k, self.share_r = (nn.Parameter(torch.ones(1, 1, dim)) for _ in range(2))
        self.hidden = FeedForward(dim, hidden, "relu2", bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        gate = self.receptance(self.mixed(x_BNC, self.share_r)).sigmoid()
        return gate * self.hidden(self.mixed(x_BNC, self.share_k))

    def draws(self) -> dict[str, Draw]:
        share = self.share_draw(self.depth_left)
        return {
            "share_k": share,
            "share_r": share,
            "hidden.up.weight": orthogonal(),
            "hidden.down.weight": Draw(),
            "receptance.weight": Draw(),
        }


class _RwkvConfig(MixerConfig):
    causal: ClassVar[bool] = True

    def refuses_tokens(self, tokens: TokenGrid) -> str | None:
        if not tokens.causal:
            return "reads a sequence from its first token: it has a causal form only, for language nets"
        return super().refuses_tokens(tokens)

    def knows_positions(self) -> bool:
        return True


class TimeMixConfig(_RwkvConfig):
    """The `mixer` section for RWKV-4's time mixing; `feed_forward: rwkv` adds its channel mixing."""

    title: ClassVar[str] = "RWKV-4"

    kind: Literal["rwkv"] = "rwkv"

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> TimeMix:
        return TimeMix(dim, tokens.num_tokens)


class ChannelMixConfig(_RwkvConfig):
    """The `mixer` section for RWKV-4's channel mixing in place of time mixing (`ffnPre` of layer 0).

    hidden  width of the feed-forward
    """

    title: ClassVar[str] = "RWKV-4 channel mixing"

    kind: Literal["rwkv_channels"] = "rwkv_channels"
    hidden: int = Field(default=768, ge=1)

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> ChannelMix:
        return ChannelMix(dim, tokens.num_tokens, self.hidden)
