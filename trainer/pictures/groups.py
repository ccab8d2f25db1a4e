"""Which patches of images a net keeps, merges and drops."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from models.reducers.groups import token_groups
from models.transformer import ViT
from trainer.pictures.attention import picture_of


def draw_groups(net: ViT, images: Tensor) -> Figure | None:
    """A row for each image, a column for each reduction: dropped patches are hidden, patches of one merged
    token have one colour. None for a net that reduces nothing."""
    found = token_groups(net, images)
    if not found:
        return None
    figure = Figure(figsize=(1.9 * (len(found) + 1) + 0.3, 1.9 * len(images) + 0.4))
    axes = figure.subplots(len(images), len(found) + 1, squeeze=False)
    height, width = net.config.image_shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for number, row in enumerate(axes):
        for axis in row:
            axis.imshow(picture_of(images[number]), cmap="gray_r")
            axis.set_xticks([])
            axis.set_yticks([])
        for axis, groups in zip(row[1:], found, strict=True):
            group, size = groups.group[number].cpu(), groups.size[number].cpu()
            dropped = torch.where(size == 0, 1.0, torch.nan)
            merged = torch.where(size > 1, (group % 20).float(), torch.nan)
            axis.imshow(dropped.numpy(), cmap="gray", vmin=0, vmax=2, alpha=0.85, extent=extent)
            axis.imshow(merged.numpy(), cmap="tab20", vmin=0, vmax=19, alpha=0.6, extent=extent)
            kept = int((size == 1).sum())
            axis.set_title(f"layer {groups.layer}: {groups.tokens} tokens, {kept} alone")
    figure.suptitle("grey: dropped; one colour: merged into one token", fontsize=9)
    return figure
