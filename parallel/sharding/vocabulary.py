"""Vocabulary parallelism: rows of the embedding and of the head over the model-parallel group."""

from __future__ import annotations

import torch
from fairscale.nn.model_parallel.cross_entropy import vocab_parallel_cross_entropy
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from torch import Tensor

from models.transformer import GPT
from parallel.mesh import Mesh
from parallel.sharding.layout import Shard


def shard_vocabulary(net: GPT, mesh: Mesh, shard: Shard) -> None:
    """Splits embedding, head and loss; `shard` is the embedding's.

    The net's logits are then those of this rank's words; the vocabulary is padded to equal parts.
    """
    width, padded = net.config.width, (shard.stop - shard.start) * mesh.model
    net.embedding = VocabParallelEmbedding(padded, width, init_method=not_drawn)  # pyright: ignore
    net.head = _Head(width, padded, shard.inside[1])  # pyright: ignore
    if net.config.tie_embeddings:
        net.head.weight = net.embedding.weight
    net.token_losses = _token_losses


class _Head(ColumnParallelLinear):
    """Logits of this rank's words; −∞ for padding."""

    def __init__(self, width: int, padded: int, words: int) -> None:
        super().__init__(width, padded, bias=False, gather_output=False, init_method=not_drawn)
        self._words = words

    def forward(self, input_: Tensor) -> Tensor:
        logits = super().forward(input_)
        if self._words < logits.shape[-1]:
            logits = logits.clone()
            logits[..., self._words :] = -torch.inf
        return logits


def _token_losses(logits_BNV: Tensor, targets_BN: Tensor) -> Tensor:
    losses = vocab_parallel_cross_entropy(logits_BNV.float(), targets_BN.clamp_min(0))
    return losses.masked_fill(targets_BN < 0, 0.0)


def not_drawn(weight: Tensor) -> Tensor:
    """Initializer that does nothing: weights are drawn later, by name (models/initial.py)."""
    return weight
