"""Static and Dynamic MNIST: positions of digits, and the order of samples."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from models import ViTConfig
from parallel.errors import UserError
from trainer.data.digits.moving_mnist import MovingMnist, MovingMnistConfig, place
from trainer.data.source import Batch
from trainer.metrics import IGNORED


def source(train: str = "dynamic", seed: int = 0, **settings: object) -> MovingMnist:
    config = MovingMnistConfig.model_validate({"train": train} | settings)
    return MovingMnist(config, seed)


def take(batches, count: int) -> Batch:
    """The next `count` batches as one."""
    parts = list(islice(batches, count))
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def ink(batch: Batch) -> torch.Tensor:
    """The sum of each image's pixels, which tells digits apart wherever they are."""
    return batch.inputs.flatten(1).sum(1, dtype=torch.int64)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


def test_a_digit_is_placed_at_its_row_and_column_of_a_black_canvas():
    images = np.random.default_rng(0).integers(1, 255, (3, 28, 28)).astype(np.uint8)
    rows, columns = np.array([0, 10, 56]), np.array([12, 3, 0])
    canvas = place(images, rows, columns, (84, 40))
    assert canvas.shape == (3, 1, 84, 40)
    for image, row, column, out in zip(images, rows, columns, canvas, strict=True):
        assert np.array_equal(out[0, row : row + 28, column : column + 28], image)
        assert np.count_nonzero(out) == np.count_nonzero(image)


def test_static_digits_are_in_the_middle():
    batch = take(source("static").train_batches(0, 64), 1)
    inside = batch.inputs[:, :, 28:56, 28:56]
    assert inside.sum() > 0
    assert batch.inputs.long().sum() == inside.long().sum()


def test_dynamic_digits_reach_every_side_of_the_canvas():
    seen = take(source().train_batches(0, 500), 2).inputs.amax((0, 1)) > 0
    assert seen[:8].any()
    assert seen[-8:].any()
    assert seen[:, :8].any()
    assert seen[:, -8:].any()


def test_a_rectangular_canvas_is_height_by_width():
    dynamic = take(source(canvas=[40, 120]).train_batches(0, 500), 2).inputs
    assert dynamic.shape == (1000, 1, 40, 120)
    seen = dynamic.amax((0, 1)) > 0
    assert seen[:6].any()
    assert seen[-6:].any()
    assert seen[:, :8].any()
    assert seen[:, -8:].any()
    static = take(source("static", canvas=[40, 120]).train_batches(0, 64), 1).inputs
    assert static.long().sum() == static[:, :, 6:34, 46:74].long().sum() > 0


def test_a_canvas_as_two_equal_sides_gives_the_same_images_as_one_side():
    square, sides = (next(source(canvas=canvas).train_batches(0, 32)) for canvas in (84, [84, 84]))
    assert equal(square, sides)


@pytest.mark.parametrize(
    ("canvas", "image_size", "message"),
    [
        (84, 96, "model.image_size=96: data.kind=moving_mnist with data.canvas=84 needs 84"),
        ([40, 120], 40, "model.image_size=40: .* with data.canvas=\\[40, 120\\] needs \\[40, 120\\]"),
    ],
)
def test_images_of_another_size_than_the_canvas_are_refused(canvas, image_size: int, message: str):
    net = {"image_size": image_size, "patch_size": 4, "channels": 1, "classes": 10}
    config = MovingMnistConfig.model_validate({"canvas": canvas})
    with pytest.raises(UserError, match=message):
        config.check(ViTConfig.model_validate(net))


@pytest.mark.parametrize("canvas", [27, [84, 20], [84], "wide", [28, 28, 28]])
def test_an_impossible_canvas_is_refused(canvas):
    with pytest.raises(ValueError, match=r"should be a side of at least 28 pixels, or \[height, width\]"):
        MovingMnistConfig.model_validate({"canvas": canvas})


def test_an_epoch_has_every_digit_once_and_the_next_one_in_another_order():
    mnist = source()
    count, batch = 1000, 250
    digits = mnist.digits
    mnist.digits = replace(
        digits, train_images=digits.train_images[:count], train_labels=digits.train_labels[:count]
    )
    first, second = (take(mnist.train_batches(epoch * count, batch), count // batch) for epoch in (0, 1))
    every = torch.from_numpy(mnist.digits.train_images.sum((1, 2), dtype=np.int64))
    assert torch.equal(ink(first).sort().values, every.sort().values)
    assert torch.equal(ink(second).sort().values, every.sort().values)
    assert not torch.equal(ink(first), ink(second))


@pytest.mark.parametrize("train", ["static", "dynamic"])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 3)])
def test_every_world_size_gets_the_same_global_batches(train: str, world: int, accumulate: int):
    mnist, B = source(train), 24
    whole = [take(mnist.train_batches(15_990, B), 1), take(mnist.train_batches(15_990 + B, B), 1)]
    streams = [mnist.train_batches(15_990, B, accumulate, rank, world) for rank in range(world)]
    for expected in whole:  # the first one spans two epochs of 16,000
        parts = [next(stream) for _ in range(accumulate) for stream in streams]
        assert equal(take(iter(parts), len(parts)), expected)


def test_a_resumed_run_gets_the_next_samples():
    mnist = source()
    stream = mnist.train_batches(0, 32)
    for _ in range(5):
        next(stream)
    assert equal(next(stream), next(source().train_batches(5 * 32, 32)))


def test_another_seed_gives_another_order():
    one, other = (next(source(seed=seed).train_batches(0, 64)) for seed in (0, 1))
    assert not torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_has_every_sample_once_at_any_world_size(world: int):
    mnist = source(test_samples=100)
    batches = [
        batch for rank in range(world) for batch in mnist.evaluation_batches("dynamic", 32, rank, world)
    ]
    sizes = [len(batch.targets) for batch in batches]
    assert max(sizes) <= 32
    assert sizes == sizes[: len(sizes) // world] * world  # the ranks evaluate together
    both = take(iter(batches), len(batches))
    counted = ink(both)[both.targets != IGNORED]
    every = torch.from_numpy(mnist.digits.test_images[:100].sum((1, 2), dtype=np.int64))
    assert torch.equal(counted.sort().values, every.sort().values)


def test_the_evaluation_set_does_not_depend_on_seed_and_batch():
    one = take(source(seed=0, test_samples=60).evaluation_batches("dynamic", 60), 1)
    other = take(source("static", 1, test_samples=60).evaluation_batches("dynamic", 20), 3)
    assert equal(one, other)


def test_a_net_trained_on_static_digits_is_also_tested_on_dynamic_ones():
    assert source("static").evaluations == {
        "static": "Static→Static",
        "dynamic": "Static→Dynamic",
    }
    assert source("dynamic").evaluations == {"dynamic": "Dynamic→Dynamic"}
