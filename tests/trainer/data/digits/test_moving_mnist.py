"""Static and Dynamic MNIST: where digits lie, and who sees which when."""

from itertools import islice

import numpy as np
import pytest
import torch

from trainer.data.digits.moving_mnist import MovingMnist, MovingMnistConfig, place
from trainer.data.source import Batch


def source(train: str = "dynamic", seed: int = 0, **settings: object) -> MovingMnist:
    config = MovingMnistConfig.model_validate({"train": train} | settings)
    return MovingMnist(config, seed)


def take(batches, count: int) -> Batch:
    parts = list(islice(batches, count))
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


def test_place_puts_each_digit_where_it_is_told_and_nothing_elsewhere():
    images = np.random.default_rng(0).integers(1, 255, (3, 28, 28)).astype(np.uint8)
    rows, columns = np.array([0, 10, 56]), np.array([56, 3, 0])
    canvas = place(images, rows, columns, 84)
    assert canvas.shape == (3, 1, 84, 84)
    for image, row, column, out in zip(images, rows, columns, canvas, strict=True):
        assert np.array_equal(out[0, row : row + 28, column : column + 28], image)
        assert np.count_nonzero(out) == np.count_nonzero(image)


def test_static_digits_lie_in_the_middle():
    batch = take(source("static").train_batches(0, 64), 1)
    inside = batch.inputs[:, :, 28:56, 28:56]
    assert inside.sum() > 0
    assert batch.inputs.long().sum() == inside.long().sum()


def test_dynamic_digits_reach_every_side_of_the_canvas():
    seen = take(source().train_batches(0, 500), 4).inputs.amax((0, 1)) > 0
    assert seen[:8].any()
    assert seen[-8:].any()
    assert seen[:, :8].any()
    assert seen[:, -8:].any()


def test_an_epoch_holds_every_digit_once_and_the_next_places_them_anew():
    mnist = source()
    count = len(mnist.digits.train_images)
    ink = lambda batch: batch.inputs.long().sum((1, 2, 3))  # noqa: E731
    first = take(mnist.train_batches(0, 1000), count // 1000)
    second = take(mnist.train_batches(count, 1000), count // 1000)
    every = torch.from_numpy(mnist.digits.train_images.astype(np.int64).sum((1, 2)))
    assert torch.equal(ink(first).sort().values, every.sort().values)
    assert torch.equal(ink(second).sort().values, every.sort().values)
    assert not torch.equal(ink(first), ink(second))


@pytest.mark.parametrize("train", ["static", "dynamic"])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 3)])
def test_every_world_size_sees_the_same_global_batches(train: str, world: int, accumulate: int):
    mnist, B = source(train), 24
    whole = [take(mnist.train_batches(15_990, B), 1), take(mnist.train_batches(15_990 + B, B), 1)]
    streams = [mnist.train_batches(15_990, B, accumulate, rank, world) for rank in range(world)]
    for expected in whole:  # the first one straddles two epochs of 16,000
        parts = [next(stream) for _ in range(accumulate) for stream in streams]
        assert equal(take(iter(parts), len(parts)), expected)


def test_a_later_start_goes_on_where_the_stream_would_be():
    mnist = source()
    stream = mnist.train_batches(0, 32)
    for _ in range(5):
        next(stream)
    assert equal(next(stream), next(source().train_batches(5 * 32, 32)))


def test_another_seed_gives_another_order_and_other_places():
    one, other = (next(source(seed=seed).train_batches(0, 64)) for seed in (0, 1))
    assert not torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_holds_every_sample_once_at_any_world_size(world: int):
    mnist = source(test_samples=100)
    batches = [
        batch for rank in range(world) for batch in mnist.evaluation_batches("dynamic", 32, rank, world)
    ]
    assert max(len(batch.targets) for batch in batches) <= 32
    ink = take(iter(batches), len(batches)).inputs.long().sum((1, 2, 3))
    every = torch.from_numpy(mnist.digits.test_images[:100].astype(np.int64).sum((1, 2)))
    assert torch.equal(ink.sort().values, every.sort().values)


def test_the_evaluation_set_does_not_depend_on_the_runs_seed_or_the_batch():
    one = take(source(seed=0, test_samples=60).evaluation_batches("dynamic", 60), 1)
    other = take(source("static", 1, test_samples=60).evaluation_batches("dynamic", 20), 3)
    assert equal(one, other)


def test_a_net_trained_in_the_middle_is_tested_in_both_places():
    assert source("static").evaluations == {
        "static": "Static→Static",
        "dynamic": "Static→Dynamic",
    }
    assert source("dynamic").evaluations == {"dynamic": "Dynamic→Dynamic"}
