"""One mesh place's part of exported weights."""

from __future__ import annotations

from torch import Tensor

from models.pretrained.weights import PretrainedWeights
from parallel.sharding.layout import Shard


def read_shard(weights: PretrainedWeights, name: str, shard: Shard) -> Tensor:
    """The part of a tensor that `shard` describes, zeros beyond the end of a padded one; no more is read."""
    if shard.dim is None:
        return weights.read_part(name, shard.entries)
    start, size = shard.inside
    part = weights.read_part(name, shard.entries, shard.dim, start, start + size)
    if part.shape == shard.shape:
        return part
    padded = part.new_zeros(shard.shape)
    padded.narrow(shard.dim, 0, size).copy_(part)
    return padded
