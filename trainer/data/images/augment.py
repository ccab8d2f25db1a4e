"""Augmentation of whole batches on the device: MixUp, CutMix, normalisation."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, by channel
DEVIATION = (0.229, 0.224, 0.225)


def to_float(pixels: Tensor) -> Tensor:
    """pixels uint8 [B, height, width, 3] → float32 [B, 3, height, width] in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] → mean 0 and standard deviation 1 over ImageNet's training images."""
    mean, deviation = _statistics(images.device, images.dtype)
    return (images - mean) / deviation


@lru_cache
def _statistics(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Copied to the device once, since each copy from a list synchronises."""
    mean, deviation = (torch.tensor(values, device=device, dtype=dtype) for values in (MEAN, DEVIATION))
    return mean.view(3, 1, 1), deviation.view(3, 1, 1)


class Mix:
    """MixUp or CutMix of each image with the one at the mirrored place of the batch.

    mixup, cutmix   α of the Beta distribution of the share λ; 0: off. With both on, each batch takes
                    one of them with equal probability, as in DeiT's recipe

    Draws from torch's global generator on the CPU. kornia's RandomMixUpV2 is not used: it draws λ
    uniformly. Sources: arXiv 1710.09412, arXiv 1905.04899.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        self.mixup, self.cutmix = mixup, cutmix

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """images[B, 3, height, width] and class shares [B, classes] → the same, mixed."""
        if not self.mixup and not self.cutmix:
            return images, targets
        cut = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand(()) < 0.5))
        alpha = torch.tensor(self.cutmix if cut else self.mixup)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        if cut:
            images, share = _paste(images, images.flip(0), share)
        else:
            images = images.lerp(images.flip(0), 1 - share)
        return images, targets.lerp(targets.flip(0), 1 - share)


def _paste(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Paste a box of 1 − share of the area from `others`; returns the images and their actual share."""
    height, width = images.shape[-2:]
    cut = (1 - share) ** 0.5
    y, x = (int(torch.randint(side, ())) for side in (height, width))
    half_y, half_x = int(height * cut) // 2, int(width * cut) // 2
    top, bottom = max(y - half_y, 0), min(y + half_y, height)
    left, right = max(x - half_x, 0), min(x + half_x, width)
    images = images.clone()
    images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)


def soft_targets(labels: Tensor, classes: int) -> Tensor:
    """labels[B] → class shares, float32 [B, classes]; a row of zeros for a negative label."""
    return F.one_hot(labels.clamp(min=0), classes).float() * (labels >= 0).unsqueeze(1)
