"""Multi-head self-attention: one query, key and value matrix for all pairs; positions act in `attend`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.cost import Cost, Load
from models.mixers.interface import Axes, Mixer, MixerConfig
from models.mixers.measured_cost import measured_cost
from models.positions.interface import PositionConfig
from models.positions.learned import NoPosition
from models.tokens import TokenGrid


class Attention(Mixer):
    """x[B, N, C] → [B, N, C], causal if the tokens are; `position` may act inside.

    bias      of the query, key and value projections
    project   whether a linear layer [D, C] follows the heads; without it, the outputs are D wide

    Source: arXiv 1706.03762.
    """

    def __init__(
        self,
        dim: int,
        tokens: TokenGrid,
        heads: int,
        head_dim: int = 64,
        position: PositionConfig | None = None,
        bias: bool = False,
        project: bool = True,
        out_bias: bool = True,
    ) -> None:
        super().__init__(dim, tokens.num_tokens)
        self.heads, self.causal, self.inner = heads, tokens.causal, heads * head_dim
        self.class_token = tokens.class_token
        self.further_shapes = ((self.num_tokens,),) if tokens.masked else ()
        self.q = nn.Linear(dim, self.inner, bias)
        self.k = nn.Linear(dim, self.inner, bias)
        self.v = nn.Linear(dim, self.inner, bias)
        self.attend = (position or NoPosition()).attend(tokens, heads, head_dim)
        self.out = nn.Linear(self.inner, dim, out_bias) if project else nn.Identity()

    def forward(self, x_BNC: Tensor, kept_BN: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        x_BNC = self.head_input(x_BNC)
        q, k, v = (
            project(x_BNC).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, E]
            for project in (self.q, self.k, self.v)
        )
        if kept_BN is None:
            out_BHNE = self.attend(q, k, v, self.head_input)
        else:
            out_BHNE = self.attend.masked(q, k, v, self.head_input(kept_BN))
        y_BNC = self.out(out_BHNE.transpose(1, 2).flatten(2))
        if self.importance is None:
            return y_BNC
        read_BHN = self.attend.importance(q, k, self.head_input, self.importance)
        return y_BNC, self.head_mean(read_BHN, 1)[:, int(self.class_token) :]

    def axes(self) -> Axes:
        if not isinstance(self.out, nn.Linear):
            return {}  # all outputs are needed here
        declared: Axes = {"out.weight": {1: "head"}}
        for name in "qkv":
            declared[f"{name}.weight"] = {0: "head"}
            if self.q.bias is not None:
                declared[f"{name}.bias"] = {0: "head"}
        return declared | {f"attend.{name}": dims for name, dims in self.attend.axes().items()}

    def draws(self) -> dict[str, Draw]:
        return self.attend.projection_draws()

    def cost(self, load: Load) -> Cost:
        """By formulas where nothing is added to the logits; T is B·N. What autograd saves was read off
        `forward`."""
        if not self.attend.plain or self.importance or self.further_shapes:
            return measured_cost(self, load)
        size, N, T = load.sizes, self.num_tokens, load.samples * self.num_tokens
        inner = self.inner
        pairs = N * (N + 1) // 2 if self.causal else N * N
        projections = [p for p in self.parameters() if p.dim() == 2]
        forward = load.samples * 4 * pairs * inner // load.head_parts
        forward += sum(2 * T * p.numel() for p in projections) // load.head_parts
        own, heads = inner // load.head_parts, self.heads // load.head_parts
        inputs = 3 if size.product != size.residual else 1  # autocast casts x for each projection
        return Cost(
            forward=forward,
            recomputed=0,
            saved=inputs * T * self.dim * size.product + 5 * T * own * size.product + T * heads * 4,
            work=4 * T * own * size.product,
            head_gradients=T * self.dim * size.residual,
        )


class AttentionConfig(MixerConfig):
    """The `mixer` section for self-attention; `bias`: of the query, key and value projections."""

    title: ClassVar[str] = "Self-attention"
    causal: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    masks: ClassVar[bool] = True

    kind: Literal["attention"] = "attention"
    heads: int = Field(default=3, ge=1)
    head_dim: int = Field(default=64, ge=1)
    bias: bool = False

    def refuses(self, position: PositionConfig) -> str | None:
        return None

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Attention:
        return Attention(dim, tokens, self.heads, self.head_dim, position, self.bias)
