"""Random numbers that are a pure function of (seed, stream, counter), vectorised.

A sample's randomness must not depend on who draws it or on what was drawn before, so that every
world size and every resumed run sees the same data. A generator with a state cannot promise that.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15


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
    """The order of `count` samples, int64 [count]; kept, so read only."""
    order = np.argsort(random_bits(seed, stream, np.arange(count)), kind="stable")
    order.setflags(write=False)
    return order


def micro_batches(start: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """The sample numbers of a data rank's micro-batches without end; see `Source.train_batches`."""
    micro = batch // (accumulate * world)
    for first in count(start + rank * micro, micro * world):
        yield np.arange(first, first + micro)
