"""The order of training samples in shards: a pure function of (seed, epoch, shards).

An epoch concatenates the shards in a random order into one line of N samples and cuts it into `lanes`
lanes of equal length. Each lane is read from start to end through a shuffle buffer. Sample n of the
epoch comes from lane n mod lanes, at position n div lanes. So an epoch has every sample once, however
unequal the shards, and the order does not depend on the number of ranks.

Rank r of `world` takes the samples whose number, counted over all epochs, is r modulo `world`. If
`world` divides `lanes`, every lane is read by one rank; otherwise by world / gcd(world, lanes) ranks,
each of which skips the others' samples without decoding them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.data.sampling import Stream, permutation, random_bits

MAX_LANES = 512  # each is an open file; the default limit is 1,024 per process


class LaneSamples(NamedTuple):
    """Samples of a lane in reading order: shard number, index in the shard, position on the line."""

    shard: np.ndarray
    index_in_shard: np.ndarray
    line: np.ndarray


def default_lanes(shards: int) -> int:
    """The greatest power of two up to the number of shards, at most MAX_LANES."""
    return min(MAX_LANES, 1 << (shards.bit_length() - 1))


class Order:
    """Maps sample numbers to samples.

    counts   number of samples in each shard
    lanes    number of lanes; more lanes than shards read shards several times
    buffer   greatest number of samples in the shuffle buffers of all lanes
    """

    def __init__(self, counts: Sequence[int], lanes: int, buffer: int, seed: int) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.samples = int(self.counts.sum())
        self.lanes = min(lanes, self.samples)
        self.buffer = max(1, buffer // self.lanes)
        self.seed = seed

    def numbers(self, start: int, count: int, rank: int, world: int) -> np.ndarray:
        """A rank's first `count` sample numbers from `start` on, counted over all epochs."""
        return start + (rank - start) % world + world * np.arange(count)

    def worker(self, numbers: np.ndarray, world: int, workers: int) -> np.ndarray:
        """The worker of a rank that reads each of its samples; a lane belongs to one worker."""
        lane = numbers % self.samples % self.lanes
        return lane // math.gcd(world, self.lanes) % workers

    def lane_samples(self, epoch: int, lane: int, start: int, rank: int, world: int) -> LaneSamples:
        """The rank's samples of a lane in an epoch, from sample number `start` on."""
        longer = self.samples % self.lanes  # number of lanes, the first ones, with one sample more
        length = self.samples // self.lanes + (lane < longer)
        first = lane * (self.samples // self.lanes) + min(lane, longer)
        # Adding noise up to the buffer's size and sorting acts as a shuffle buffer of that size: a
        # sample comes after all that precede it by more than `buffer` on the line.
        noise = random_bits(self.seed, Stream.IMAGE_ORDER + 2 * epoch, first + np.arange(length)) / 2.0**64
        line = first + np.argsort(np.arange(length) + self.buffer * noise, kind="stable")
        number = epoch * self.samples + np.arange(length) * self.lanes + lane
        line = line[(number >= start) & (number % world == rank)]
        shards = permutation(self.seed, Stream.IMAGE_ORDER + 2 * epoch + 1, len(self.counts))
        ends = np.cumsum(self.counts[shards])
        place = np.searchsorted(ends, line, side="right")
        shard = shards[place]
        return LaneSamples(shard, line - (ends[place] - self.counts[shard]), line)
