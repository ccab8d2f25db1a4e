"""Decoder-only language model over any causal token mixer (arXiv 2510.10060, section 4.3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.transformer import TransformerConfig, build_layers

EMBEDDING_STD = 0.02  # GPT-2's; with more, tied logits begin at √C and learning is slow


class GPTConfig(TransformerConfig):
    """The `model` section of a language net.

    vocabulary V; tokens N, the length of every sequence; tie_embeddings: the head's matrix is the
    token embedding's (the public code's are two matrices).
    """

    kind: Literal["gpt"] = "gpt"
    vocabulary: int = Field(default=50_257, ge=2)
    tokens: int = Field(default=160, ge=1)
    tie_embeddings: bool = False

    def build(self) -> GPT:
        return GPT(self)


class GPT(nn.Module):
    """ids[B, N] int64 → logits[B, N, V]; the logits at n are for token n + 1 and see tokens 0 … n.

    Raises ValueError for ids of another length than `tokens`.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        C, V = config.width, config.vocabulary
        self.embedding = nn.Embedding(V, C)
        self.positions = (
            nn.Parameter(torch.randn(1, config.tokens, C)) if config.learned_positions() else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = build_layers(config, (config.tokens,), causal=True)
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, V, bias=False)
        self.reset_embeddings()
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    @torch.no_grad()
    def reset_embeddings(self) -> None:
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=EMBEDDING_STD)

    def no_decay(self) -> set[str]:
        """Parameters beside norms and biases that weight decay leaves alone."""
        return {"positions"}

    def forward(self, ids_BN: Tensor, targets_BN: Tensor | None = None) -> Tensor:
        """Logits; with targets the mean loss (see `loss`)."""
        return self.logits(ids_BN) if targets_BN is None else self.loss(ids_BN, targets_BN)

    def loss(self, ids_BN: Tensor, targets_BN: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens whose target is not negative, a float32 scalar."""
        losses = self.token_losses(self.logits(ids_BN), targets_BN)
        return losses.sum() / (targets_BN >= 0).sum()

    def logits(self, ids_BN: Tensor) -> Tensor:
        if ids_BN.dim() != 2 or ids_BN.shape[1] != self.config.tokens:
            raise ValueError(f"ids of shape {tuple(ids_BN.shape)}: [batch, {self.config.tokens}] is needed")
        x_BNC = self.embedding(ids_BN)
        if self.positions is not None:
            x_BNC = x_BNC + self.positions
        return self.head(self.norm(self.layers(self.dropout(x_BNC))))

    def token_losses(self, logits_BNV: Tensor, targets_BN: Tensor) -> Tensor:
        """Cross-entropy of each token in nats [B, N], float32; 0 where the target is negative."""
        targets = targets_BN.clamp_min(0)
        losses = F.cross_entropy(logits_BNV.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.view_as(targets).masked_fill(targets_BN < 0, 0.0)
