"""JPEG to pixels for training and evaluation, and any image file to the JPEG for a shard."""

import io
import math
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

# What Pillow raises for content that is not a complete image.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_QUALITY = 95
_ATTEMPTS = 10
DRAWS = 4 * _ATTEMPTS + 1  # random numbers for one `random_crop`
Box = tuple[float, float, float, float]


class Crop(NamedTuple):
    """The box (left, upper, right, lower) to cut out of an image, and whether to mirror it."""

    box: Box
    flip: bool


def random_crop(
    width: int,
    height: int,
    draws: np.ndarray,
    scale: tuple[float, float],
    flip: bool = True,
    aspect: float = 1.0,
) -> Crop:
    """A box of random area, aspect ratio and position, as Inception's and torchvision's RandomResizedCrop.

    draws    DRAWS random numbers in [0, 1)
    scale    least and greatest share of the image's area
    aspect   width / height of the pixels that the box will be resized to; the box's own is between 3/4
             and 4/3 of it, so that objects are not distorted more for rectangles than for squares

    Where no attempt fits, the middle of the image. Source: arXiv 1409.4842, section 6.
    """
    mirrored = flip and bool(draws[-1] < 0.5)
    for area, shape, x, y in draws[:-1].reshape(-1, 4):
        pixels = width * height * (scale[0] + area * (scale[1] - scale[0]))
        ratio = aspect * math.exp((2 * shape - 1) * math.log(4 / 3))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return Crop((left, upper, left + w, upper + h), mirrored)
    w, h = min(width, round(height * 4 / 3 * aspect)), min(height, round(width * 4 / 3 / aspect))
    left, upper = (width - w) // 2, (height - h) // 2
    return Crop((left, upper, left + w, upper + h), mirrored)


def decode_training(
    jpeg: bytes, shape: tuple[int, int], draws: np.ndarray, scale: tuple[float, float], flip: bool
) -> np.ndarray:
    """Pixels uint8 [*shape, 3] of a random crop, shape = (height, width); raises one of UNREADABLE."""
    image = Image.open(io.BytesIO(jpeg))
    height, width = shape
    return _pixels(image, random_crop(*image.size, draws, scale, flip, width / height), shape)


def decode_evaluation(jpeg: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Pixels uint8 [*shape, 3] of the middle, shape = (height, width); raises one of UNREADABLE.

    The image is resized to the smallest size that covers 256/224 of the shape, then cropped. Rounding
    is torchvision's, so that accuracies compare.
    """
    image = _rgb(Image.open(io.BytesIO(jpeg)))
    height, width = shape
    cover_height, cover_width = (round(side * 256 / 224) for side in shape)
    narrow = image.width * cover_height <= image.height * cover_width
    target, original = (cover_width, image.width) if narrow else (cover_height, image.height)
    resized_width, resized_height = (int(side * target / original) for side in image.size)
    left, upper = round((resized_width - width) / 2), round((resized_height - height) / 2)
    resized = image.resize((resized_width, resized_height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, upper, left + width, upper + height)))


def _pixels(image: Image.Image, crop: Crop, shape: tuple[int, int]) -> np.ndarray:
    full = image.size
    height, width = shape
    left, upper, right, lower = crop.box
    # Decoding a JPEG at 1/2, 1/4 or 1/8 is less work; allowed while the box keeps `shape` pixels.
    least = math.ceil(full[0] * width / (right - left)), math.ceil(full[1] * height / (lower - upper))
    image.draft("RGB", least)
    x, y = image.size[0] / full[0], image.size[1] / full[1]
    box = (left * x, upper * y, min(right * x, image.size[0]), min(lower * y, image.size[1]))
    part = _rgb(image).resize((width, height), Image.Resampling.BICUBIC, box)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else part)


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def as_jpeg(content: bytes, resize_short: int | None) -> bytes:
    """The JPEG to store for an image file: its own bytes where possible, otherwise encoded again.

    Images with a short side above `resize_short` pixels are resized to it; other formats, and JPEGs
    that are neither RGB nor grey, become RGB JPEGs. Decodes the whole file; raises one of UNREADABLE
    where it is not a complete image.
    """
    image = Image.open(io.BytesIO(content))
    image.load()
    short = min(image.size)
    target = short if resize_short is None else min(short, resize_short)
    if target == short and image.format == "JPEG" and image.mode in ("RGB", "L"):
        return content
    rgb = image.convert("RGB")
    if target < short:
        width, height = (max(1, round(side * target / short)) for side in image.size)
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    rgb.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
