"""Vocabulary parallelism: rows of the embedding and of the head over the model-parallel group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from torch import Tensor

from models.ops.cross_entropy import summed_cross_entropy
from models.transformer import GPT
from parallel.mesh import Mesh
from parallel.sharding.layout import Shard


def shard_vocabulary(net: GPT, mesh: Mesh, shard: Shard) -> None:
    """Splits embedding, head and loss; `shard` is the embedding's.

    The net's logits are then those of this rank's words; the vocabulary is padded to equal parts.
    """
    group = mesh.group("model")
    assert group is not None
    width, padded = net.config.width, (shard.stop - shard.start) * mesh.model
    net.embedding = VocabParallelEmbedding(padded, width, init_method=not_drawn)  # pyright: ignore
    net.head = _Head(width, padded, ShardedVocabulary(group, *shard.inside))  # pyright: ignore
    if net.config.tie_embeddings:
        net.head.weight = net.embedding.weight


class ShardedVocabulary:
    """The words of one rank of a group: see models/ops/cross_entropy.py."""

    def __init__(self, group: dist.ProcessGroup, first: int, count: int) -> None:
        self.first, self.count, self._group = first, count, group

    def max_(self, numbers: Tensor) -> None:
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self._group)

    def sum_(self, numbers: Tensor) -> None:
        dist.all_reduce(numbers, group=self._group)


class _Head(ColumnParallelLinear):
    """Logits of this rank's words, −∞ for padding; with targets the loss over all ranks' words."""

    def __init__(self, width: int, padded: int, words: ShardedVocabulary) -> None:
        super().__init__(width, padded, bias=False, gather_output=False, init_method=not_drawn)
        self._words = words

    def forward(self, input_: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is not None:
            return summed_cross_entropy(input_.flatten(0, 1), self.weight, targets.flatten(), self._words)
        logits = super().forward(input_)
        if self._words.count < logits.shape[-1]:
            logits = logits.clone()
            logits[..., self._words.count :] = -torch.inf
        return logits


def not_drawn(weight: Tensor) -> Tensor:
    """Initializer that does nothing: weights are drawn later, by name (models/initial.py)."""
    return weight
