"""Which patches of an image a net keeps, merges and drops, for pictures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.reducers.interface import Reducer
from models.transformer import ViT


class TokenGroups(NamedTuple):
    """What the reduction in a layer has made of an image's patches, with all reductions before it.

    layer    the layer's index
    tokens   how many tokens are left, the class token not counted
    group    [B, rows, columns]: the token 0 … tokens − 1 that each patch is in, −1 if it was dropped
    size     [B, rows, columns]: how many patches that token has; 1: kept as it is, 0: dropped
    """

    layer: int
    tokens: int
    group: Tensor
    size: Tensor


@torch.no_grad()
def token_groups(net: ViT, images: Tensor) -> list[TokenGroups]:
    """The groups after each reduction of a net, on images[B, channels, height, width], as in inference.

    Empty for a net that reduces nothing. Raises ValueError for a reducer that tells no groups.
    """
    found_in = ((index, getattr(layer, "reduce", None)) for index, layer in enumerate(net.layers))
    reducers = [(index, reducer) for index, reducer in found_in if isinstance(reducer, Reducer)]
    told: dict[int, Tensor] = {}
    training = net.training
    for index, reducer in reducers:
        reducer.watch = lambda group, index=index: told.update({index: group})
    try:
        net.eval().logits(images)
    finally:
        net.train(training)
        for _, reducer in reducers:
            reducer.watch = None
    found, (rows, columns) = list[TokenGroups](), net.config.grid
    group_BN = torch.arange(rows * columns, device=images.device).expand(len(images), -1)
    for index, reducer in reducers:
        if index not in told:
            raise ValueError(
                f"layer {index}: {type(reducer).__name__} does not tell what becomes of the tokens"
            )
        group_BN = torch.where(group_BN < 0, -1, told[index].gather(1, group_BN.clamp_min(0)))
        tokens = int(group_BN.max()) + 1
        counts_BK = torch.zeros_like(group_BN).scatter_add(1, group_BN.clamp_min(0), (group_BN >= 0).long())
        size_BN = torch.where(group_BN < 0, 0, counts_BK.gather(1, group_BN.clamp_min(0)))
        group, size = (t.unflatten(1, (rows, columns)) for t in (group_BN, size_BN))
        found.append(TokenGroups(index, tokens, group, size))
    return found
