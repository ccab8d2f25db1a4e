"""RandAugment of a whole batch: every image has its own operations, and each operation is one call."""

from collections.abc import Callable

import torch
from torch import Tensor

# The operations that move pixels come last: one warp does all of them.
_COLOURS = (
    *("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness"),
)
_MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = _COLOURS + _MOVES


class RandAugment:
    """`operations` random operations, all different, of strength `magnitude` (of 30), on images in [0, 1].

    Operations and their strengths are those of kornia's RandAugment, which draws them once for a batch and
    so needs many small batches. Draws from torch's global generator on the CPU, and never waits for the
    device. Source: arXiv 1909.13719.
    """

    def __init__(self, operations: int, magnitude: int) -> None:
        self.operations = operations
        self.strength = magnitude / 30
        self._colours = _colour_operations(self.strength)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images float [B, 3, height, width] → the same shape."""
        chosen = torch.rand(len(images), len(OPERATIONS)).argsort(1)[:, : self.operations]
        signs = torch.where(torch.rand(chosen.shape) < 0.5, -1.0, 1.0)
        for operation, sign in zip(chosen.T, signs.T, strict=True):
            images = self.apply(images, operation, sign)
        return images

    def apply(self, images: Tensor, operation: Tensor, sign: Tensor) -> Tensor:
        """Operation number operation[B] of OPERATIONS to each image; sign[B] is the direction of moves."""
        order = operation.argsort(stable=True)
        counts = operation.bincount(minlength=len(OPERATIONS)).tolist()
        colours = counts[: len(_COLOURS)]
        moves = order[sum(colours) :]
        sorted_images = images[_on(images.device, order)]
        *coloured, moved = sorted_images.split([*colours, len(moves)])
        parts = [apply(part) for apply, part in zip(self._colours, coloured, strict=True) if len(part)]
        if len(moves):
            parts.append(self._move(moved, operation[moves], sign[moves]))
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return torch.cat(parts)[_on(images.device, back)]

    def _move(self, images: Tensor, operation: Tensor, sign: Tensor) -> Tensor:
        from kornia.geometry.transform import warp_affine

        height, width = images.shape[-2:]
        matrices = self.matrices(operation, sign, height, width)
        return warp_affine(images, _on(images.device, matrices), (height, width))

    def matrices(self, operation: Tensor, sign: Tensor, height: int, width: int) -> Tensor:
        """The maps [B, 2, 3] from an image's pixels to the moved image's, x first."""
        from kornia.geometry.transform import get_rotation_matrix2d, get_shear_matrix2d

        amount = sign * self.strength
        move = [operation == OPERATIONS.index(name) for name in _MOVES]
        rotate, shear_x, shear_y, translate_x, translate_y = (amount * each for each in move)
        centre = torch.tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(amount), 2)
        radians = torch.pi * 0.3  # as kornia has it: 0.3 · 180 degrees at full strength
        sheared = get_shear_matrix2d(centre, shear_x * radians, shear_y * radians)
        rotated = get_rotation_matrix2d(centre, rotate * 30, torch.ones(len(amount), 2))
        matrices = torch.where(move[0].view(-1, 1, 1), rotated, sheared[:, :2])
        matrices[:, 0, 2] += translate_x * 0.1 * width
        matrices[:, 1, 2] += translate_y * 0.1 * height
        return matrices


def _colour_operations(strength: float) -> list[Callable[[Tensor], Tensor]]:
    """One function per name in _COLOURS."""
    from kornia import enhance  # takes a second to import

    def same(images: Tensor, value: float) -> Tensor:  # made on the device, without a copy that waits
        return torch.full((len(images),), value, device=images.device)

    factor = 0.1 + 1.8 * strength
    bits = int(8 - 4 * strength)
    half, added = 0.5, 0.43 * strength  # kornia draws the threshold; half is the original's
    return [
        enhance.normalize_min_max,
        enhance.equalize,
        lambda images: 1 - images,
        lambda images: enhance.posterize(images, same(images, bits).int()),
        lambda images: enhance.solarize(images, same(images, strength)),
        lambda images: enhance.solarize(images, same(images, half), same(images, added)),
        lambda images: enhance.adjust_saturation(images, same(images, factor)).clamp(0, 1),
        lambda images: enhance.adjust_contrast(images, same(images, factor)),
        lambda images: enhance.adjust_brightness(images, same(images, factor - 1)),
        lambda images: enhance.sharpness(images, same(images, factor)),
    ]


def _on(device: torch.device, numbers: Tensor) -> Tensor:
    """A small tensor of the host on `device`, copied without a wait."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)
