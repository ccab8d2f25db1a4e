"""The nets: a pre-norm transformer over any token mixer, for images (ViT) and for text (GPT)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.initial import Draw
from models.ops.cross_entropy import WholeVocabulary, summed_cross_entropy
from models.stages import LayerSpec, TransformerConfig
from models.tokens import TokenGrid

EMBEDDING_STD = 0.02  # GPT-2's; with more, tied logits begin at √C and learning is slow
Side = Annotated[int, Field(ge=1)]


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
    """x ← x + mixer(norm(x)), then x ← x + mlp(norm(x)); the last layer of a stage may reduce the tokens."""

    def __init__(self, config: TransformerConfig, spec: LayerSpec) -> None:
        super().__init__()
        C = config.width
        self.mixer_norm, self.mixer = nn.LayerNorm(C), spec.build_mixer(C)
        self.mlp_norm, self.mlp = nn.LayerNorm(C), FeedForward(C, config.mlp)
        self.dropout = nn.Dropout(config.dropout)
        self.reduce, self.tokens_after = spec.build_reducer(C), spec.tokens_after.num_tokens

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.dropout(self.mixer(self.mixer_norm(x_BNC)))
        x_BNC = x_BNC + self.dropout(self.mlp(self.mlp_norm(x_BNC)))
        if self.reduce is None:
            return x_BNC
        x_BMC = self.reduce(x_BNC)
        if x_BMC.shape[1] != self.tokens_after:
            name, said = type(self.reduce).__name__, self.tokens_after
            raise ValueError(f"{name} gives {x_BMC.shape[1]} tokens where its config says {said}")
        return x_BMC


class ViTConfig(TransformerConfig):
    """The `model` section of an image net.

    image_size, patch_size   pixels: one number for a square, [height, width] for a rectangle
    pool                     "cls" reads a class token, "mean" averages all tokens
    """

    kind: Literal["vit"] = "vit"
    image_size: Side | tuple[Side, Side] = 224
    patch_size: Side | tuple[Side, Side] = 16
    channels: int = Field(default=3, ge=1)
    classes: int = Field(default=1000, ge=1)
    pool: Literal["cls", "mean"] = "cls"

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if any(pixels % side for pixels, side in zip(self.image_shape, self.patch_shape, strict=True)):
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return _pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return _pair(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        (height, width), (rows, columns) = self.image_shape, self.patch_shape
        return (height // rows, width // columns)

    @property
    def token_grid(self) -> TokenGrid:
        return TokenGrid(self.grid, class_token=self.pool == "cls")


class ViT(nn.Module):
    """images[B, channels, height, width] → logits[B, classes] (arXiv 2010.11929)."""

    def __init__(self, config: ViTConfig, specs: list[LayerSpec] | None = None) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.patch_shape
        C, pixels = config.width, config.channels * rows * columns
        self.patch_embedding = nn.Sequential(nn.LayerNorm(pixels), nn.Linear(pixels, C), nn.LayerNorm(C))
        self.class_token = nn.Parameter(torch.randn(1, 1, C)) if config.pool == "cls" else None
        self.positions = config.embedded_position().embedding(config.token_grid, C)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.Sequential(*(Layer(config, spec) for spec in specs or config.layer_specs()))
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, config.classes)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits; with targets the mean loss (see `loss`)."""
        return self.logits(images) if targets is None else self.loss(images, targets)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, a float32 scalar; targets are labels[B] or class shares[B, classes]."""
        return F.cross_entropy(self.logits(images).float(), targets)

    def logits(self, images: Tensor) -> Tensor:
        x_BNC = self.patch_embedding(self.patches(images))
        if self.class_token is not None:
            x_BNC = torch.cat((self.class_token.expand(len(x_BNC), -1, -1), x_BNC), 1)
        if self.positions is not None:
            x_BNC = x_BNC + self.positions
        x_BNC = self.norm(self.layers(self.dropout(x_BNC)))
        return self.head(x_BNC[:, 0] if self.class_token is not None else x_BNC.mean(1))

    def patches(self, images: Tensor) -> Tensor:
        """Cuts images into rows of pixels [B, N, patch height · patch width · channels]."""
        wanted = (self.config.channels, *self.config.image_shape)
        if images.shape[1:] != wanted:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: [batch, {', '.join(map(str, wanted))}] is needed"
            )
        height, width = self.config.patch_shape
        tiles = images.unflatten(2, (-1, height)).unflatten(4, (-1, width))  # [B, c, rows, h, columns, w]
        return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def draws(self) -> dict[str, Draw]:
        """See models/initial.py."""
        return {"class_token": Draw(std=1.0), "positions": Draw(std=1.0)}

    def no_decay(self) -> set[str]:
        """Parameters besides norms and biases that weight decay leaves alone."""
        return {"class_token", "positions"}


class GPTConfig(TransformerConfig):
    """The `model` section of a language net.

    vocabulary, tokens   V, and N, the length of every sequence
    tie_embeddings       the head's matrix is the token embedding's (the public code's are two matrices)
    """

    kind: Literal["gpt"] = "gpt"
    vocabulary: int = Field(default=50_257, ge=2)
    tokens: int = Field(default=160, ge=1)
    tie_embeddings: bool = False

    @property
    def token_grid(self) -> TokenGrid:
        return TokenGrid((self.tokens,), causal=True)

    @model_validator(mode="after")
    def _check_reductions(self) -> Self:
        if any(stage.reduce for stage in self.stages or ()):
            raise ValueError("stages: a language net predicts every token, so no stage can `reduce` them")
        return self


class VocabularyHead(nn.Linear):
    """x[B, N, C] → logits[B, N, V]; with targets[B, N] the sum of the tokens' cross-entropies instead."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__(width, words, bias=False)

    def forward(self, x_BNC: Tensor, targets_BN: Tensor | None = None) -> Tensor:
        if targets_BN is None:
            return super().forward(x_BNC)
        words = WholeVocabulary(len(self.weight))
        return summed_cross_entropy(x_BNC.flatten(0, 1), self.weight, targets_BN.flatten(), words)


class GPT(nn.Module):
    """ids[B, N] int64 → logits[B, N, V]; the logits at n are for token n + 1 and see tokens 0 … n.

    Raises ValueError for ids of another length than `tokens`. Source: arXiv 2510.10060, section 4.3.
    """

    def __init__(self, config: GPTConfig, specs: list[LayerSpec] | None = None) -> None:
        super().__init__()
        self.config = config
        C, V = config.width, config.vocabulary
        self.embedding = nn.Embedding(V, C)
        self.positions = config.embedded_position().embedding(config.token_grid, C)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.Sequential(*(Layer(config, spec) for spec in specs or config.layer_specs()))
        self.norm = nn.LayerNorm(C)
        self.head = VocabularyHead(C, V)
        self.reset_embeddings()
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    @torch.no_grad()
    def reset_embeddings(self) -> None:
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=EMBEDDING_STD)

    def forward(self, ids_BN: Tensor, targets_BN: Tensor | None = None) -> Tensor:
        """Logits; with targets the mean loss (see `loss`)."""
        return self.logits(ids_BN) if targets_BN is None else self.loss(ids_BN, targets_BN)

    def loss(self, ids_BN: Tensor, targets_BN: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens whose target is not negative, a float32 scalar."""
        return self.head(self.features(ids_BN), targets_BN) / (targets_BN >= 0).sum()

    def logits(self, ids_BN: Tensor) -> Tensor:
        return self.head(self.features(ids_BN))

    def features(self, ids_BN: Tensor) -> Tensor:
        """What the head reads, [B, N, C]."""
        if ids_BN.dim() != 2 or ids_BN.shape[1] != self.config.tokens:
            raise ValueError(f"ids of shape {tuple(ids_BN.shape)}: [batch, {self.config.tokens}] is needed")
        x_BNC = self.embedding(ids_BN)
        if self.positions is not None:
            x_BNC = x_BNC + self.positions
        return self.norm(self.layers(self.dropout(x_BNC)))

    def draws(self) -> dict[str, Draw]:
        """See models/initial.py."""
        return {"embedding.weight": Draw(std=EMBEDDING_STD), "positions": Draw(std=EMBEDDING_STD)}

    def no_decay(self) -> set[str]:
        """Parameters besides norms and biases that weight decay leaves alone."""
        return {"positions"}


ModelConfig = Annotated[ViTConfig | GPTConfig, Field(discriminator="kind")]


def build_model(config: ModelConfig, specs: list[LayerSpec] | None = None) -> ViT | GPT:
    """The net of a run's `model` section; under torch.device("meta") it takes no memory.

    With `specs`, it has these layers in place of the config's.
    """
    return ViT(config, specs) if isinstance(config, ViTConfig) else GPT(config, specs)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
