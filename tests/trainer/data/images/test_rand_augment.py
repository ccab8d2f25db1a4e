"""RandAugment of whole batches: kornia's operations, each image its own, without a wait for the device."""

import pytest
import torch
from kornia.augmentation.auto import RandAugment as OfKornia

from trainer.data.images.rand_augment import OPERATIONS, RandAugment

RANGES = {  # of strengths, by operation: kornia's own
    "rotate": (-30.0, 30.0),
    "posterize": (4.0, 8.0),
    "solarize": (0.0, 1.0),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0.1, 1.9)),
    **dict.fromkeys(("shear_x", "shear_y"), (-0.3, 0.3)),
    **dict.fromkeys(("translate_x", "translate_y"), (-0.1, 0.1)),
}


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "solarize_add"])
@pytest.mark.parametrize("magnitude", [9, 21])
def test_each_operation_is_kornias(name: str, magnitude: int):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 12, 17)
    low, high = RANGES.get(name, (0.0, 1.0))
    expected = OfKornia(n=1, m=magnitude, policy=[[(name, low, high)]])(images)  # moves either way
    augment, operation = RandAugment(1, magnitude), torch.full((6,), OPERATIONS.index(name))
    ways = [augment.apply(images, operation, torch.full((6,), sign)) for sign in (-1.0, 1.0)]
    errors = torch.stack([(way - expected).abs().amax((1, 2, 3)) for way in ways]).amin(0)
    assert errors.max() < 1e-5
    assert (expected != images).any()


def test_solarize_add_brightens_and_inverts_what_passes_one_half():
    images = torch.full((1, 3, 4, 4), 0.2)
    images[0, 0] = 0.45
    out = RandAugment(1, 15).apply(images, torch.tensor([OPERATIONS.index("solarize_add")]), torch.ones(1))
    assert torch.allclose(out[0, 1], torch.tensor(0.2 + 0.215))
    assert torch.allclose(out[0, 0], torch.tensor(1 - 0.665))


def test_images_of_a_batch_keep_their_places():
    torch.manual_seed(0)
    images = torch.rand(len(OPERATIONS), 3, 12, 12)
    augment, sign = RandAugment(1, 9), torch.ones(len(OPERATIONS))
    operation = torch.randperm(len(OPERATIONS))
    together = augment.apply(images, operation, sign)
    for place in range(len(images)):
        alone = augment.apply(images[place : place + 1], operation[place : place + 1], sign[:1])
        assert torch.allclose(together[place], alone[0], atol=1e-6)


def test_operations_of_an_image_differ_and_each_is_as_likely():
    torch.manual_seed(0)
    seen = []

    class Recording(RandAugment):
        def apply(self, images: torch.Tensor, operation: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
            seen.append(operation)
            return images

    Recording(2, 9)(torch.empty(3000, 3, 1, 1))
    assert (seen[0] != seen[1]).all()
    assert torch.cat(seen).bincount(minlength=len(OPERATIONS)).min() > 0.8 * 6000 / len(OPERATIONS)


def test_never_waits_for_the_device():
    augmented = RandAugment(2, 9)(torch.empty(64, 3, 16, 16, device="meta"))  # reading a number would raise
    assert augmented.shape == (64, 3, 16, 16)


@pytest.mark.parametrize("shape", [(16, 16), (12, 24)])
def test_rand_augment_depends_on_the_seed_and_keeps_shape_and_range(shape: tuple[int, int]):
    torch.manual_seed(0)
    images = torch.rand(20, 3, *shape)
    augment = RandAugment(2, 9)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(augment(images))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert not outs[0].requires_grad
    for out in outs:
        assert out.shape == images.shape
        assert out.min() >= 0
        assert out.max() <= 1
        assert (out != images).flatten(1).any(1).all()
