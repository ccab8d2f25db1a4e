"""Vision transformer (arXiv 2010.11929) over any token mixer."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.transformer import TransformerConfig, build_layers


class ViTConfig(TransformerConfig):
    """The `model` section of an image net; pool "cls" reads a class token, "mean" averages all tokens."""

    kind: Literal["vit"] = "vit"
    image_size: int = Field(default=224, ge=1)
    patch_size: int = Field(default=16, ge=1)
    channels: int = Field(default=3, ge=1)
    classes: int = Field(default=1000, ge=1)
    pool: Literal["cls", "mean"] = "cls"

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return (side, side)

    def build(self) -> ViT:
        return ViT(self)


class ViT(nn.Module):
    """images[B, channels, height, width] → logits[B, classes]."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        C, patch = config.width, config.channels * config.patch_size**2
        class_token = config.pool == "cls"
        tokens = config.grid[0] * config.grid[1] + class_token
        self.patch_embedding = nn.Sequential(nn.LayerNorm(patch), nn.Linear(patch, C), nn.LayerNorm(C))
        self.class_token = nn.Parameter(torch.randn(1, 1, C)) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, tokens, C)) if config.learned_positions() else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = build_layers(config, config.grid, class_token=class_token)
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, config.classes)

    def no_decay(self) -> set[str]:
        """Parameters beside norms and biases that weight decay leaves alone."""
        return {"class_token", "positions"}

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
        """Cuts images into rows of pixels [B, N, patch·patch·channels]."""
        side = self.config.patch_size
        size = self.config.image_size
        wanted = (self.config.channels, size, size)
        if images.shape[1:] != wanted:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: [batch, {', '.join(map(str, wanted))}] is needed"
            )
        tiles = images.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # [B, c, rows, side, columns, side]
        return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
