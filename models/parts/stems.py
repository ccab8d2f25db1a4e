"""Patch stems: images[B, channels, height, width] → tokens[B, N, C], row by row."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.cost import Cost, Load
from models.mixers.measured_cost import measured_cost
from models.parts.batch_norm import BatchNorm

Pair = tuple[int, int]


class Stem(BaseModel):
    """The `stem` section of an image net.

    kind     patches: pixels normalised, projected, normalised (ViT); projection: one convolution by patches;
             convolutions: 3×3 of stride 2 with batch norms (arXiv 2106.09681), for patches of 4, 8, 16, …
    stride   of a projection whose patches overlap, in pixels; null: the patch
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["patches", "projection", "convolutions"] = "patches"
    stride: int | None = Field(default=None, ge=1)

    def grid(self, image: Pair, patch: Pair) -> Pair:
        """(rows, columns) of tokens; raises ValueError, in one line, where it cannot cut such patches."""
        if self.stride is not None and self.kind != "projection":
            raise ValueError(f"stem.stride={self.stride}: only a projection's patches overlap")
        if self.kind == "convolutions":
            side = patch[0]
            if patch[1] != side or side < 4 or side & (side - 1):
                raise ValueError(
                    f"patch_size {_size(patch)}: a stem of convolutions needs a square of 4, 8, 16, …"
                )
            return -(-image[0] // side), -(-image[1] // side)
        strides = (self.stride, self.stride) if self.stride else patch
        if any(s > p for s, p in zip(strides, patch, strict=True)):
            raise ValueError(f"stem.stride={self.stride} is above patch_size {_size(patch)}")
        if any(pixels % stride for pixels, stride in zip(image, strides, strict=True)):
            what = f"stem.stride {self.stride}" if self.stride else f"patch_size {_size(patch)}"
            raise ValueError(f"image_size {_size(image)} is not a multiple of {what}")
        sides = zip(image, patch, strides, strict=True)
        rows, columns = ((pixels + (p - s) // 2 * 2 - p) // s + 1 for pixels, p, s in sides)
        return rows, columns

    def build(self, image: Pair, patch: Pair, channels: int, dim: int) -> nn.Module:
        """The stem, for C = `dim`; raises ValueError where C does not divide into its widths."""
        if self.kind == "patches":
            return PatchStem(patch, channels, dim)
        if self.kind == "projection":
            return ProjectionStem(image, patch, channels, dim, self.stride)
        return ConvolutionStem(image, patch, channels, dim)


def _size(sides: Pair) -> int | Pair:
    return sides[0] if sides[0] == sides[1] else sides


def stem_from_name(value: Any) -> Any:
    """`stem: convolutions` for `stem: {kind: convolutions}`."""
    return {"kind": value} if isinstance(value, str) else value


AnyStem = Annotated[Stem, BeforeValidator(stem_from_name)]


class Measured:
    """A stem without formulas for its cost; `input_shape` is that of an image."""

    input_shape: tuple[int, ...]

    def cost(self, load: Load) -> Cost:
        """See `Mixer.cost`."""
        return measured_cost(cast("nn.Module", self), load)


class PatchStem(nn.Sequential):
    """Patches in the order (row, column, channel) of their pixels, normalised, projected and normalised."""

    def __init__(self, patch: Pair, channels: int, dim: int) -> None:
        pixels = channels * patch[0] * patch[1]
        super().__init__(nn.LayerNorm(pixels), nn.Linear(pixels, dim), nn.LayerNorm(dim))
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(patches(images, self.patch))


def patches(images: Tensor, patch: Pair) -> Tensor:
    """Cuts images into rows of pixels [B, N, patch height · patch width · channels]."""
    height, width = patch
    tiles = images.unflatten(2, (-1, height)).unflatten(4, (-1, width))  # [B, c, rows, h, columns, w]
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class ConvolutionStem(Measured, nn.Sequential):
    """3×3 convolutions of stride 2 with batch norms, GELU between, whose widths double up to C.

    Source: arXiv 2106.09681, appendix; patch 16 takes four, patch 8 three.
    """

    def __init__(self, image: Pair, patch: Pair, channels: int, dim: int) -> None:
        steps = patch[0].bit_length() - 1
        if dim % (1 << (steps - 1)):
            raise ValueError(
                f"width {dim}: a stem for patches of {patch[0]} needs a multiple of {1 << (steps - 1)}"
            )
        widths = [channels, *(dim >> (steps - 1 - step) for step in range(steps))]
        layers = OrderedDict[str, nn.Module]()
        for step, (before, after) in enumerate(pairwise(widths)):
            if step:
                layers[f"gelu{step}"] = nn.GELU()
            layers[f"conv{step}"] = Convolution(before, after, 3, 2, 1, bias=False)
            layers[f"norm{step}"] = BatchNorm(after)
        super().__init__(layers)
        self.input_shape = (channels, *image)

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(images).flatten(2).transpose(1, 2)


class ProjectionStem(Measured, nn.Module):
    """One convolution by patches every `stride` pixels; images are padded where patches overlap."""

    def __init__(self, image: Pair, patch: Pair, channels: int, dim: int, stride: int | None = None) -> None:
        super().__init__()
        strides = (stride, stride) if stride else patch
        padding = [(p - s) // 2 for p, s in zip(patch, strides, strict=True)]
        self.projection = nn.Conv2d(channels, dim, patch, strides, padding)  # pyright: ignore
        self.input_shape = (channels, *image)
        self.fan_in = channels * patch[0] * patch[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(images).flatten(2).transpose(1, 2)

    def draws(self) -> dict[str, Draw]:
        """LeCun's normal."""
        return {"projection.weight": Draw(std=self.fan_in**-0.5), "projection.bias": Draw()}


class Convolution(nn.Conv2d):
    """A convolution that says how it begins: as torch's."""

    def draws(self) -> dict[str, Draw]:
        bound = (self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
        return {"weight": Draw(bound=bound)} | ({"bias": Draw(bound=bound)} if self.bias is not None else {})
