"""The pre-norm transformer body that all nets share, whatever mixes their tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models.mixers.attention import AttentionConfig
from models.mixers.translution import TranslutionConfig

MixerConfig = Annotated[TranslutionConfig | AttentionConfig, Field(discriminator="kind")]


class MixerLayers(BaseModel):
    """A run of `layers` layers with the same mixer."""

    model_config = ConfigDict(extra="forbid")

    mixer: MixerConfig
    layers: int = Field(ge=1)


class TransformerConfig(BaseModel):
    """What every net's `model` section has.

    width C, depth, mlp (hidden width of the feed-forward); `mixer` for all layers, or `mixers`, a
    list of runs {mixer, layers} that add up to depth; positions: learned embeddings, none, or auto
    (learned where no mixer knows positions by itself); dropout on the outputs of mixer and
    feed-forward.
    """

    model_config = ConfigDict(extra="forbid")

    width: int = Field(default=192, ge=1)
    depth: int = Field(default=6, ge=1)
    mlp: int = Field(default=768, ge=1)
    mixer: MixerConfig = TranslutionConfig()
    mixers: list[MixerLayers] | None = None
    positions: Literal["auto", "learned", "none"] = "auto"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_mixers(self) -> Self:
        if self.mixers is not None and sum(run.layers for run in self.mixers) != self.depth:
            layers = [run.layers for run in self.mixers]
            raise ValueError(f"mixers: layers {layers} add up to {sum(layers)}, depth is {self.depth}")
        return self

    def layer_mixers(self) -> list[TranslutionConfig | AttentionConfig]:
        """The mixer of each layer."""
        if self.mixers is None:
            return [self.mixer] * self.depth
        return [run.mixer for run in self.mixers for _ in range(run.layers)]

    def learned_positions(self) -> bool:
        if self.positions == "auto":
            return not any(mixer.knows_positions() for mixer in self.layer_mixers())
        return self.positions == "learned"


class FeedForward(nn.Module):
    """x[…, C] → […, C] through a hidden width with GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gelu(self.up(x)))


class Layer(nn.Module):
    """x ← x + mixer(norm(x)), then x ← x + mlp(norm(x))."""

    def __init__(self, dim: int, mixer: nn.Module, mlp: nn.Module, dropout: float) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.LayerNorm(dim), mixer
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), mlp
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.dropout(self.mixer(self.mixer_norm(x_BNC)))
        return x_BNC + self.dropout(self.mlp(self.mlp_norm(x_BNC)))


def build_layers(
    config: TransformerConfig, shape: tuple[int, ...], causal: bool = False, class_token: bool = False
) -> nn.Sequential:
    """The layers of a net over tokens of this grid; x[B, N, C] → [B, N, C]."""
    return nn.Sequential(
        *(
            Layer(
                config.width,
                mixer.build(config.width, shape, causal, class_token),
                FeedForward(config.width, config.mlp),
                config.dropout,
            )
            for mixer in config.layer_mixers()
        )
    )
