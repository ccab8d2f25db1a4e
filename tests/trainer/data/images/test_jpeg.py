"""Pixels: the crops that are asked for, as Pillow makes them the long way."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.images.image_folders import ASSETS
from trainer.data.images.jpeg import (
    DRAWS,
    UNREADABLE,
    as_jpeg,
    decode_evaluation,
    decode_training,
    random_crop,
)

WIDE = next(path for path in ASSETS if "_10_" in path.name)  # 240 × 160


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


@pytest.mark.parametrize("size", [224, 48])
@pytest.mark.parametrize("path", [ASSETS[0], WIDE], ids=lambda path: path.stem)
def test_evaluation_is_resize_to_256_and_the_middle_224(path: Path, size: int):
    image = Image.open(path).convert("RGB")
    scale = round(size * 256 / 224) / min(image.size)
    image = image.resize([int(side * scale + 1e-9) for side in image.size], Image.Resampling.BICUBIC)
    assert min(image.size) == {224: 256, 48: 55}[size]
    left, upper = round((image.width - size) / 2), round((image.height - size) / 2)
    expected = image.crop((left, upper, left + size, upper + size))
    assert np.array_equal(decode_evaluation(path.read_bytes(), size), np.asarray(expected))


def test_evaluation_shows_the_middle_part_of_the_image():
    ramp = np.broadcast_to(np.linspace(0, 255, 512), (256, 512)).astype(np.uint8)
    pixels = decode_evaluation(encoded(Image.fromarray(ramp), quality=100), 224)
    assert pixels[:, 0].mean() == pytest.approx(255 * 144 / 512, abs=1)
    assert pixels[:, -1].mean() == pytest.approx(255 * 368 / 512, abs=1)


def test_a_training_crop_is_the_part_that_was_drawn():
    draws = np.random.default_rng(3).random(DRAWS)
    image = Image.open(WIDE).convert("RGB")
    crop = random_crop(*image.size, draws, (0.2, 0.5))
    expected = image.crop(crop.box).resize((32, 32), Image.Resampling.BICUBIC)
    pixels = np.asarray(expected, float)[:, :: -1 if crop.flip else 1]
    found = decode_training(WIDE.read_bytes(), 32, draws, (0.2, 0.5), True)
    assert np.abs(found - pixels).mean() < 6
    assert np.corrcoef(found.ravel(), pixels.ravel())[0, 1] > 0.985


def test_random_crops_have_the_shares_and_shapes_asked_for_and_half_are_mirrored():
    random = np.random.default_rng(0)
    crops = [random_crop(300, 200, random.random(DRAWS), (0.1, 0.6)) for _ in range(2000)]
    boxes = np.array([crop.box for crop in crops])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 300
    assert boxes[:, 3].max() <= 200
    share = width * height / 60_000
    assert 0.09 < share.min() < 0.12
    assert 0.55 < share.max() < 0.61
    assert 0.73 < (width / height).min() < 0.78
    assert 1.28 < (width / height).max() < 1.36
    assert 0.45 < np.mean([crop.flip for crop in crops]) < 0.55
    assert not any(random_crop(9, 9, random.random(DRAWS), (0.1, 1), flip=False).flip for _ in range(50))


def test_an_image_too_long_for_any_attempt_gives_its_middle():
    assert random_crop(400, 10, np.full(DRAWS, 0.9), (1.0, 1.0)).box == (193, 0, 206, 10)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_cmyk_become_rgb(mode: str):
    jpeg = encoded(Image.open(WIDE).convert(mode))
    assert decode_evaluation(jpeg, 32).shape == (32, 32, 3)


def test_a_good_jpeg_is_kept_as_it_is_and_others_become_one():
    content = WIDE.read_bytes()
    assert as_jpeg(content, None) == content
    assert as_jpeg(content, 160) == content
    image = Image.open(WIDE)
    for other in (encoded(image, "PNG"), encoded(image.convert("CMYK"))):
        made = Image.open(io.BytesIO(as_jpeg(other, None)))
        assert (made.format, made.mode, made.size) == ("JPEG", "RGB", image.size)
    assert Image.open(io.BytesIO(as_jpeg(content, 80))).size == (120, 80)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", WIDE.read_bytes()[:-900]], ids=["empty", "text", "torn"]
)
def test_what_is_no_whole_image_is_refused(content: bytes):
    with pytest.raises(UNREADABLE):
        as_jpeg(content, None)
    with pytest.raises(UNREADABLE):
        decode_evaluation(content, 160)
