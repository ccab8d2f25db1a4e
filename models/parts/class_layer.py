"""The layers after the body of a net in which a class token reads the others."""

from __future__ import annotations

import torch
from torch import Tensor

from models.parts.block import Block
from models.stages import LayerSpec, TransformerConfig


class ClassLayer(Block):
    """x[B, 1 + N, C] → the same: class attention, then a feed-forward of the class token (arXiv 2103.17239).

    As in the public code of arXiv 2106.09681, whose weights expect it: the second norm replaces what it
    norms (all tokens if `norm_tokens`, else the class token), and all other tokens are doubled.
    """

    def __init__(self, config: TransformerConfig, spec: LayerSpec, norm_tokens: bool) -> None:
        super().__init__(config, spec)
        self.norm_tokens = norm_tokens

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.mixer_scale(self.mixer(self.mixer_norm(x_BNC)))
        if self.norm_tokens:
            x_BNC = self.mlp_norm(x_BNC)
        class_B1C, tokens_BNC = x_BNC[:, :1], x_BNC[:, 1:]
        if not self.norm_tokens:
            class_B1C = self.mlp_norm(class_B1C)
        class_B1C = class_B1C + self.mlp_scale(self.mlp(class_B1C))
        return torch.cat((class_B1C, 2 * tokens_BNC), 1)
