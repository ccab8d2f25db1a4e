"""The order of training samples in shards: a pure function of (seed, epoch, shards).

An epoch lays the shards end to end in a random order and cuts this line of N samples into `lanes`
equally long lanes. A lane is read from its start to its end through a shuffle buffer. Sample n of
the epoch comes from lane n mod lanes, at place n div lanes. So every sample is seen once an epoch,
however unequal the shards, and nothing here knows of ranks.

Rank r of `world` takes the samples whose number over all epochs is r modulo `world`. When `world`
divides `lanes` no other rank reads its lanes; otherwise lanes are read by world / gcd(world, lanes)
ranks, each of which passes over the others' samples undecoded.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.data.sampling import permutation, random_bits

_STREAMS = 1 << 40  # far from those that others count up; two for an epoch
MOST_LANES = 512  # each is an open file, of which a process has 1,024 by default


class Wanted(NamedTuple):
    """Samples of a lane in their order: shard number, number within it, and place on the line."""

    shard: np.ndarray
    index: np.ndarray
    line: np.ndarray


def default_lanes(shards: int) -> int:
    """The greatest power of two that is no more than the shards, at most MOST_LANES."""
    return min(MOST_LANES, 1 << (shards.bit_length() - 1))


class Order:
    """Which sample has which number.

    counts   samples in each shard
    lanes    how many are read side by side; may exceed the shards, which costs reading
    buffer   samples that all lanes' shuffle buffers hold together, at most
    """

    def __init__(self, counts: Sequence[int], lanes: int, buffer: int, seed: int) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.samples = int(self.counts.sum())
        self.lanes = min(lanes, self.samples)
        self.buffer = max(1, buffer // self.lanes)
        self.seed = seed

    def numbers(self, start: int, count: int, rank: int, world: int) -> np.ndarray:
        """The first `count` sample numbers of a rank from `start` on, over all epochs."""
        return start + (rank - start) % world + world * np.arange(count)

    def worker(self, numbers: np.ndarray, world: int, workers: int) -> np.ndarray:
        """Which of a rank's workers reads each of its samples: all of a lane by the same one."""
        lane = numbers % self.samples % self.lanes
        return lane // math.gcd(world, self.lanes) % workers

    def wanted(self, epoch: int, lane: int, start: int, rank: int, world: int) -> Wanted:
        """The samples of a lane, from number `start` on, that belong to a rank."""
        longer = self.samples % self.lanes  # so many lanes, the first, are one longer than the rest
        length = self.samples // self.lanes + (lane < longer)
        first = lane * (self.samples // self.lanes) + min(lane, longer)
        # Adding noise up to the buffer's size and sorting is a shuffle buffer of that size: no
        # sample comes before all that lie more than `buffer` ahead of it on the line.
        noise = random_bits(self.seed, _STREAMS + 2 * epoch, first + np.arange(length)) / 2.0**64
        line = first + np.argsort(np.arange(length) + self.buffer * noise, kind="stable")
        number = epoch * self.samples + np.arange(length) * self.lanes + lane
        line = line[(number >= start) & (number % world == rank)]
        shards = permutation(self.seed, _STREAMS + 2 * epoch + 1, len(self.counts))
        ends = np.cumsum(self.counts[shards])
        place = np.searchsorted(ends, line, side="right")
        shard = shards[place]
        return Wanted(shard, line - (ends[place] - self.counts[shard]), line)
