"""`translution predict`: the most probable classes of image files."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from launch.inference.load import find_net
from models import ViTConfig
from parallel.errors import UserError
from trainer.config.run import DataConfig
from trainer.data.digits.moving_mnist import DEVIATION
from trainer.data.images.augment import normalise, to_float
from trainer.data.images.jpeg import UNREADABLE, decode_evaluation
from trainer.data.images.manifest import read_manifest
from trainer.reporting.table import Table


def predict(path: Path, images: list[Path], top: int, classes: Path | None, device: str) -> Table:
    """A row per image with its `top` classes and their probabilities in per cent.

    classes   a file with a class's name on each line; None: as in the run's data, else their numbers

    Raises UserError for a net that is none of images and for what is no image, before the net computes.
    """
    contents = [_content(image) for image in images]
    saved = find_net(path, device)
    model = saved.model
    if not isinstance(model, ViTConfig):
        raise UserError(f"{path}: holds a language net; try translution generate")
    names = _names(model, saved.data, classes)
    inputs = [_input(image, content, model) for image, content in zip(images, contents, strict=True)]
    net = saved.load()
    batch = torch.stack(inputs)
    with torch.no_grad():
        shares = net(batch.to(next(net.parameters()).device)).float().softmax(1).cpu()
    best = shares.topk(min(top, len(names)))
    table = Table(f"{path}: the most probable of {len(names)} classes, in per cent")
    for image, values, places in zip(images, best.values.tolist(), best.indices.tolist(), strict=True):
        for rank, (value, place) in enumerate(zip(values, places, strict=True), 1):
            table.put(str(image), f"{rank}.", f"{names[place]} {100 * value:.1f}")
    return table


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name image files") from None


def _input(path: Path, content: bytes, model: ViTConfig) -> Tensor:
    """The net's input [channels, height, width], as its data is evaluated: ImageNet's middle for three
    channels, digits on black for one."""
    if model.channels not in (1, 3):
        raise UserError(f"model.channels={model.channels}: image files have 1 or 3")
    try:
        if model.channels == 3:
            pixels = decode_evaluation(content, model.image_shape).copy()
            return normalise(to_float(torch.from_numpy(pixels)[None]))[0]
        return _on_black(content, model.image_shape)
    except UnidentifiedImageError:
        raise UserError(f"{path}: is not an image of a known format") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: is not a whole image ({str(error).splitlines()[0]})") from None


def _on_black(content: bytes, shape: tuple[int, int]) -> Tensor:
    """A small image lies in the middle of the canvas; a larger one is shrunk to fit. Dark on light becomes
    light on dark, as the training digits are."""
    image = Image.open(io.BytesIO(content)).convert("L")
    height, width = shape
    edge = np.asarray(image)
    if np.median(np.concatenate((edge[0], edge[-1], edge[:, 0], edge[:, -1]))) > 127:
        image = ImageOps.invert(image)
    if image.width > width or image.height > height:
        image = ImageOps.contain(image, (width, height))
    canvas = Image.new("L", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return torch.from_numpy(np.array(canvas)).float().div(255 * DEVIATION)[None]


def _names(model: ViTConfig, data: DataConfig | None, file: Path | None) -> list[str]:
    names = [str(number) for number in range(model.classes)]
    if file is not None:
        try:
            names = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes {file}: cannot be read: {error}") from None
    elif data is not None and data.kind == "imagenet":
        try:
            names = read_manifest(data.path).classes
        except UserError:  # moved since; numbers then
            return names
    if len(names) != model.classes:
        where = f"--classes {file}" if file else "the data's manifest"
        raise UserError(f"{where}: names {len(names)} classes, the net has {model.classes}")
    return names
