"""Random numbers and random orders as pure functions of (seed, stream, counter), vectorised.

A sample's randomness must not depend on who draws it or on what was drawn before, so that every
world size and every resumed run sees the same data. A generator with a state cannot promise that.
"""

import math
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from itertools import count

import numpy as np

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15
ROUNDS = 6  # of `permutation_at`; each takes one stream


class Stream(IntEnum):
    """Independent sequences of random numbers of one seed; changing a value changes every run.

    Those with a formula are the first of many, one or several for each epoch. Only data sources that
    are never used in the same run share values.
    """

    DIGIT_ROW = 0
    DIGIT_COLUMN = 1
    SYNTHETIC_INPUTS = 0
    SYNTHETIC_TARGETS = 1
    IMAGE_CROP = 2
    IMAGE_PREPARATION = 3
    DROPOUT = 8
    DIGIT_ORDER = 16  # + epoch
    TEXT_ORDER = 1 << 32  # + ROUNDS·epoch
    TEXT_SHIFT = 1 << 33
    IMAGE_ORDER = 1 << 40  # + 2·epoch for the lanes, + 2·epoch + 1 for the shards


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return x ^ (x >> np.uint64(31))


def random_bits(seed: int, stream: int, counter: np.ndarray) -> np.ndarray:
    """One random uint64 per entry of `counter` (any shape), the same on every machine."""
    key = np.array([seed * _GOLDEN & _MASK], np.uint64)
    key = _mix(_mix(key) + np.uint64((stream + 1) * _GOLDEN & _MASK))
    return _mix(_mix(counter.astype(np.uint64) * np.uint64(_GOLDEN) + key))


def random_integers(seed: int, stream: int, counter: np.ndarray, bound: int) -> np.ndarray:
    """One integer in [0, bound) per entry of `counter`; bound below 2^32."""
    high = random_bits(seed, stream, counter) >> np.uint64(32)
    return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


@lru_cache(maxsize=2)
def permutation(seed: int, stream: int, count: int) -> np.ndarray:
    """A random order of `count` samples, int64 [count]; cached, so read-only."""
    order = np.argsort(random_bits(seed, stream, np.arange(count)), kind="stable")
    order.setflags(write=False)
    return order


def permutation_at(seed: int, stream: int, count: int, places: np.ndarray) -> np.ndarray:
    """The samples at `places` (int64, each in [0, count)) of a random order of `count` samples.

    Stores no order, for corpora whose `permutation` would not fit in memory; uses ROUNDS streams from
    `stream` on. A Feistel network on the pairs (left, right) of a rectangle of a·b ≥ count cells;
    results outside `count` are encrypted again (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains", sections 5 and 4). At most √count cells are outside.
    """
    assert places.size == 0 or (places.min() >= 0 and places.max() < count)
    width = math.isqrt(count - 1) + 1
    sides = width, -(-count // width)
    sample = places.astype(np.int64)
    outside = np.ones(sample.shape, bool)
    while outside.any():
        sample[outside] = _encrypt(seed, stream, sides, sample[outside])
        outside = sample >= count
    return sample


def _encrypt(seed: int, stream: int, sides: tuple[int, int], cell: np.ndarray) -> np.ndarray:
    halves = [cell % sides[0], cell // sides[0]]
    for turn in range(ROUNDS):
        changed = turn % 2
        step = random_bits(seed, stream + turn, halves[1 - changed]) % np.uint64(sides[changed])
        halves[changed] = (halves[changed] + step.astype(np.int64)) % sides[changed]
    return halves[0] + sides[0] * halves[1]


def micro_batches(start: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """Sample numbers of each of a data rank's micro-batches, endless; see `Source.train_batches`."""
    micro = batch // (accumulate * world)
    for first in count(start + rank * micro, micro * world):
        yield np.arange(first, first + micro)
