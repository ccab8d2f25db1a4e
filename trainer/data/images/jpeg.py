"""JPEG to pixels for training and evaluation, and any image to the JPEG that a shard keeps."""

import io
import math
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

# What Pillow raises for content that is no image, or only a part of one.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_QUALITY = 95
_ATTEMPTS = 10
DRAWS = 4 * _ATTEMPTS + 1  # random numbers that `random_crop` takes
Box = tuple[float, float, float, float]


class Crop(NamedTuple):
    """The part (left, upper, right, lower) of an image to take, and whether to mirror it."""

    box: Box
    flip: bool


def random_crop(
    width: int, height: int, draws: np.ndarray, scale: tuple[float, float], flip: bool = True
) -> Crop:
    """A part of random area, shape and place, as Inception's and torchvision's RandomResizedCrop.

    draws are DRAWS numbers in [0, 1); scale the least and greatest share of the area; shapes are
    between 3:4 and 4:3. Where no attempt fits, the middle of the image. Source: arXiv 1409.4842,
    section 6.
    """
    mirrored = flip and bool(draws[-1] < 0.5)
    for area, shape, x, y in draws[:-1].reshape(-1, 4):
        pixels = width * height * (scale[0] + area * (scale[1] - scale[0]))
        ratio = math.exp((2 * shape - 1) * math.log(4 / 3))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return Crop((left, upper, left + w, upper + h), mirrored)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, upper = (width - w) // 2, (height - h) // 2
    return Crop((left, upper, left + w, upper + h), mirrored)


def decode_training(
    jpeg: bytes, size: int, draws: np.ndarray, scale: tuple[float, float], flip: bool
) -> np.ndarray:
    """Pixels uint8 [size, size, 3] of a random part; raises one of UNREADABLE."""
    image = Image.open(io.BytesIO(jpeg))
    return _pixels(image, random_crop(*image.size, draws, scale, flip), size)


def decode_evaluation(jpeg: bytes, size: int) -> np.ndarray:
    """Pixels uint8 [size, size, 3] of the middle; raises one of UNREADABLE.

    The short side is resized to size·256/224, then size² are cropped, rounded as torchvision does,
    so that accuracies compare.
    """
    image = _rgb(Image.open(io.BytesIO(jpeg)))
    short = round(size * 256 / 224)
    width, height = (int(side * short / min(image.size)) for side in image.size)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, upper, left + size, upper + size)))


def _pixels(image: Image.Image, crop: Crop, size: int) -> np.ndarray:
    full = image.size
    left, upper, right, lower = crop.box
    # A JPEG decodes to 1/2, 1/4 or 1/8 for less work, as long as the part still has `size` pixels.
    least = math.ceil(full[0] * size / (right - left)), math.ceil(full[1] * size / (lower - upper))
    image.draft("RGB", least)
    x, y = image.size[0] / full[0], image.size[1] / full[1]
    box = (left * x, upper * y, min(right * x, image.size[0]), min(lower * y, image.size[1]))
    part = _rgb(image).resize((size, size), Image.Resampling.BICUBIC, box)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else part)


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def as_jpeg(content: bytes, resize_short: int | None) -> bytes:
    """The JPEG to keep for an image file: its own bytes where they will do, else encoded anew.

    Images whose short side is above `resize_short` pixels are resized to it; what is no JPEG or has
    other colours than RGB and grey becomes an RGB one. Decodes all of it and raises one of
    UNREADABLE for a file that is no whole image.
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
