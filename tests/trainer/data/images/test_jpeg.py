"""Decoded crops, compared with the same operations in Pillow."""

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
RECTANGLES = [(96, 160), (160, 96)]  # height, width


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


@pytest.mark.parametrize("size", [224, 48])
@pytest.mark.parametrize("path", [ASSETS[0], WIDE], ids=lambda path: path.stem)
def test_evaluation_resizes_to_256_and_takes_the_middle_224(path: Path, size: int):
    image = Image.open(path).convert("RGB")
    scale = round(size * 256 / 224) / min(image.size)
    image = image.resize([int(side * scale + 1e-9) for side in image.size], Image.Resampling.BICUBIC)
    assert min(image.size) == {224: 256, 48: 55}[size]
    left, upper = round((image.width - size) / 2), round((image.height - size) / 2)
    expected = image.crop((left, upper, left + size, upper + size))
    assert np.array_equal(decode_evaluation(path.read_bytes(), (size, size)), np.asarray(expected))


@pytest.mark.parametrize("shape", RECTANGLES)
@pytest.mark.parametrize("path", [ASSETS[0], WIDE], ids=lambda path: path.stem)
def test_evaluation_of_a_rectangle_covers_256_224ths_of_it_and_takes_the_middle(
    path: Path, shape: tuple[int, int]
):
    height, width = shape
    image = Image.open(path).convert("RGB")
    scale = max(round(height * 256 / 224) / image.height, round(width * 256 / 224) / image.width)
    image = image.resize([int(side * scale + 1e-9) for side in image.size], Image.Resampling.BICUBIC)
    left, upper = round((image.width - width) / 2), round((image.height - height) / 2)
    expected = image.crop((left, upper, left + width, upper + height))
    pixels = decode_evaluation(path.read_bytes(), shape)
    assert pixels.shape == (*shape, 3)
    assert np.array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("shape", RECTANGLES)
def test_rows_stay_rows_and_objects_keep_their_proportions_in_a_rectangle(shape: tuple[int, int]):
    """A round spot in the middle, brightest at its upper left."""
    y, x = np.mgrid[-120:120, -120:120]
    spot = np.where(x**2 + y**2 < 60**2, 160 - (x + 3 * y) // 5, 0).astype(np.uint8)
    jpeg = encoded(Image.fromarray(spot), quality=100)
    whole_image = np.full(DRAWS, 0.5)
    for pixels in (
        decode_evaluation(jpeg, shape),
        decode_training(jpeg, shape, whole_image, (0.6, 0.6), flip=False),
    ):
        assert pixels.shape == (*shape, 3)
        inside = pixels[..., 0] > 60
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert len(rows) == pytest.approx(len(columns), abs=3)  # round
        upper, lower = pixels[rows[0] + 5, shape[1] // 2, 0], pixels[rows[-1] - 5, shape[1] // 2, 0]
        left, right = pixels[shape[0] // 2, columns[0] + 5, 0], pixels[shape[0] // 2, columns[-1] - 5, 0]
        assert int(upper) - int(lower) > 40 > int(left) - int(right) > 10


def test_evaluation_takes_the_middle_of_the_image():
    ramp = np.broadcast_to(np.linspace(0, 255, 512), (256, 512)).astype(np.uint8)
    pixels = decode_evaluation(encoded(Image.fromarray(ramp), quality=100), (224, 224))
    assert pixels[:, 0].mean() == pytest.approx(255 * 144 / 512, abs=1)
    assert pixels[:, -1].mean() == pytest.approx(255 * 368 / 512, abs=1)


@pytest.mark.parametrize("shape", [(32, 32), (24, 40), (40, 24)])
def test_a_training_crop_is_the_box_that_was_drawn(shape: tuple[int, int]):
    draws = np.random.default_rng(3).random(DRAWS)
    image = Image.open(WIDE).convert("RGB")
    crop = random_crop(*image.size, draws, (0.2, 0.5), aspect=shape[1] / shape[0])
    expected = image.crop(crop.box).resize(shape[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(expected, float)[:, :: -1 if crop.flip else 1]
    found = decode_training(WIDE.read_bytes(), shape, draws, (0.2, 0.5), True)
    assert np.abs(found - pixels).mean() < 6
    assert np.corrcoef(found.ravel(), pixels.ravel())[0, 1] > 0.985


def test_random_crops_have_the_right_shares_and_aspect_ratios_and_half_are_mirrored():
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


@pytest.mark.parametrize("aspect", [0.5, 2.0])
def test_random_crops_for_a_rectangle_have_its_aspect_ratio(aspect: float):
    random = np.random.default_rng(0)
    crops = [random_crop(300, 300, random.random(DRAWS), (0.1, 0.3), aspect=aspect) for _ in range(1000)]
    boxes = np.array([crop.box for crop in crops])
    ratios = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]) / aspect
    assert 0.72 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.39
    assert np.median(ratios) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("aspect", "box"), [(1.0, (193, 0, 206, 10)), (2.0, (186, 0, 213, 10))])
def test_an_image_too_long_for_any_crop_gives_its_middle(aspect: float, box: tuple[int, ...]):
    assert random_crop(400, 10, np.full(DRAWS, 0.9), (1.0, 1.0), aspect=aspect).box == box


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_cmyk_become_rgb(mode: str):
    jpeg = encoded(Image.open(WIDE).convert(mode))
    assert decode_evaluation(jpeg, (32, 32)).shape == (32, 32, 3)


def test_a_small_rgb_jpeg_keeps_its_bytes_and_other_images_become_jpegs():
    content = WIDE.read_bytes()
    assert as_jpeg(content, None) == content
    assert as_jpeg(content, 160) == content
    image = Image.open(WIDE)
    for other in (encoded(image, "PNG"), encoded(image.convert("CMYK"))):
        made = Image.open(io.BytesIO(as_jpeg(other, None)))
        assert (made.format, made.mode, made.size) == ("JPEG", "RGB", image.size)
    assert Image.open(io.BytesIO(as_jpeg(content, 80))).size == (120, 80)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", WIDE.read_bytes()[:-900]], ids=["empty", "text", "truncated"]
)
def test_incomplete_images_are_refused(content: bytes):
    with pytest.raises(UNREADABLE):
        as_jpeg(content, None)
    with pytest.raises(UNREADABLE):
        decode_evaluation(content, (160, 160))
