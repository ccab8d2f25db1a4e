"""Augmentation of batches: mixed images with their class shares, normalisation."""

import pytest
import torch

from trainer.data.images.augment import (
    DEVIATION,
    MEAN,
    Mix,
    normalise,
    soft_targets,
    to_float,
)
from trainer.metrics import IGNORED

B, CLASSES = 6, 5


def uniform_images(height: int = 20, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one value each, 0 … B − 1, and one-hot targets."""
    images = torch.arange(B).float().view(B, 1, 1, 1).expand(B, 3, height, width)
    return images, soft_targets(torch.arange(B) % CLASSES, CLASSES)


def test_pixels_become_channels_first_with_mean_0_and_deviation_1():
    pixels = torch.zeros(1, 2, 4, 3, dtype=torch.uint8)
    pixels[0, 1, 2] = torch.tensor([255, 0, 51])
    images = to_float(pixels)
    assert images.shape == (1, 3, 2, 4)
    assert images[0, :, 1, 2].tolist() == pytest.approx([1, 0, 0.2])
    typical = torch.tensor(MEAN).view(1, 3, 1, 1) + torch.tensor(DEVIATION).view(1, 3, 1, 1)
    assert normalise(typical).flatten().tolist() == pytest.approx([1, 1, 1])


def test_targets_are_one_hot_and_zero_where_ignored():
    targets = soft_targets(torch.tensor([2, IGNORED, 0]), 3)
    assert targets.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_mixup_mixes_pixels_and_targets_with_the_same_share():
    torch.manual_seed(0)
    images, targets = uniform_images()
    mixed, shares = Mix(0.8, 0)(images, targets)
    λ = float((mixed[0, 0, 0, 0] - images[-1, 0, 0, 0]) / (images[0, 0, 0, 0] - images[-1, 0, 0, 0]))
    assert 0 < λ < 1
    assert torch.allclose(mixed, λ * images + (1 - λ) * images.flip(0), atol=1e-5)
    assert torch.allclose(shares, λ * targets + (1 - λ) * targets.flip(0), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (8, 30)])
def test_cutmix_pastes_one_box_and_the_share_is_its_area(height: int, width: int):
    images, targets = uniform_images(height, width)
    shapes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, shares = Mix(0, 1.0)(images, targets)
        pasted = mixed[0, 0] != 0
        assert torch.equal(mixed[0, 0][pasted], torch.full((int(pasted.sum()),), B - 1.0))
        rows, columns = pasted.any(1), pasted.any(0)
        assert pasted.sum() == rows.sum() * columns.sum()  # a box
        shapes.add((int(rows.sum()), int(columns.sum())))
        λ = 1 - float(pasted.float().mean())
        assert torch.allclose(shares, λ * targets + (1 - λ) * targets.flip(0), atol=1e-5)
    # Boxes have the image's aspect ratio, up to rounding, unless its edges cut them.
    assert max(columns for _, columns in shapes) > 0.6 * width
    assert max(rows for rows, _ in shapes) > 0.6 * height
    assert images.unique().tolist() == list(range(B))  # the input is unchanged


def test_each_is_used_half_of_the_time_and_shares_follow_the_beta_distribution():
    images, targets = uniform_images(8, 8)
    torch.manual_seed(0)
    both = [Mix(0.8, 1.0)(images, targets)[0] for _ in range(400)]
    cut = sum(bool((mixed == mixed.round()).all()) for mixed in both)  # no interpolated values
    assert 0.4 < cut / 400 < 0.6
    # Uniform would have a fifth of the shares within 0.1 of either end; Beta(0.8) has more.
    torch.manual_seed(0)
    mixup = [float(Mix(0.8, 0)(images, targets)[1][1, 1]) for _ in range(2000)]
    assert sum(s < 0.1 or s > 0.9 for s in mixup) / 2000 > 0.23


def test_without_mixup_and_cutmix_nothing_is_mixed():
    images, targets = uniform_images()
    assert Mix(0, 0)(images, targets) == (images, targets)
