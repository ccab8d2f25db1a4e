"""A random order of any number of samples that needs no memory: each place is computed when asked.

`order.permutation` keeps an array of all samples, which a corpus of billions of tokens forbids.
"""

import math

import numpy as np

from trainer.data.sampling import random_bits

_ROUNDS = 6
_FIRST_STREAM = 1 << 32  # far from the streams that other users of `random_bits` count up


def shuffled(seed: int, epoch: int, count: int, place: np.ndarray) -> np.ndarray:
    """The samples at `place` (int64, each in [0, count)) of the epoch's order of `count` samples.

    A Feistel network on the pairs (left, right) of a rectangle of a·b ≥ count cells, in which what
    falls outside `count` is sent through again (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains", sections 5 and 4). At most √count cells are outside.
    """
    assert place.size == 0 or (place.min() >= 0 and place.max() < count)
    width = math.isqrt(count - 1) + 1
    sides = width, -(-count // width)
    sample = place.astype(np.int64)
    outside = np.ones(sample.shape, bool)
    while outside.any():
        sample[outside] = _encrypt(seed, epoch, sides, sample[outside])
        outside = sample >= count
    return sample


def _encrypt(seed: int, epoch: int, sides: tuple[int, int], cell: np.ndarray) -> np.ndarray:
    halves = [cell % sides[0], cell // sides[0]]
    for turn in range(_ROUNDS):
        changed = turn % 2
        stream = _FIRST_STREAM + epoch * _ROUNDS + turn
        step = random_bits(seed, stream, halves[1 - changed]) % np.uint64(sides[changed])
        halves[changed] = (halves[changed] + step.astype(np.int64)) % sides[changed]
    return halves[0] + sides[0] * halves[1]
