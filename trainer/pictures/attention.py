"""Pictures of attention: what chosen queries read in an image, and which offsets carry the weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from models import OffsetGrid
from models.transformer import GPT, ViT
from trainer.pictures.banks import draw_map, mixers

_QUERIES = 4  # of an image, on its diagonal
_HEADS = 4  # columns, if none is chosen


@torch.no_grad()
def weights(net: ViT | GPT, inputs: Tensor, layer: int | None = None) -> dict[int, Tensor]:
    """The weights [B, H, N, N] of each layer that has any, on a batch, in evaluation mode."""
    chosen, found, training = mixers(net, layer), dict[int, Tensor](), net.training
    with _inputs_of(chosen) as read:
        net.eval()
        (net.logits if isinstance(net, ViT) else net.features)(inputs)
    for index, mixer in chosen.items():
        if index in read and (alpha := mixer.weights(read[index])) is not None:
            found[index] = alpha.float().cpu()
    net.train(training)
    return found


@contextmanager
def _inputs_of(chosen: dict[int, Any]) -> Iterator[dict[int, Tensor]]:
    read: dict[int, Tensor] = {}
    hooks = [
        mixer.register_forward_pre_hook(lambda _, inputs, index=index: read.__setitem__(index, inputs[0]))
        for index, mixer in chosen.items()
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def draw_attention(
    net: ViT, image: Tensor, alphas: dict[int, Tensor], layer: int, head: int | None
) -> Figure | None:
    """The weights of some queries of image[channels, height, width], a row each, over its patches; None where
    the layer's tokens are not its patches."""
    alpha_HNN = alphas[layer][0]
    rows, columns = net.config.grid
    special = alpha_HNN.shape[-1] - rows * columns
    if special not in (0, 1):
        return None
    heads = list(range(min(len(alpha_HNN), _HEADS))) if head is None else [head]
    parts = [(i + 0.5) / _QUERIES for i in range(_QUERIES)]
    places = [(int(part * rows), int(part * columns)) for part in parts]
    queries = [*(["class"] if special else []), *dict.fromkeys(places)]
    figure = Figure(figsize=(1.7 * (len(heads) + 1) + 0.4, 1.7 * len(queries) + 0.4))
    axes = figure.subplots(len(queries), len(heads) + 1, squeeze=False)
    height, width = net.config.image_shape
    shown, extent = picture_of(image), (-0.5, width - 0.5, height - 0.5, -0.5)
    for row, query in zip(axes, queries, strict=True):
        index = 0 if query == "class" else special + query[0] * columns + query[1]
        row[0].imshow(shown, cmap="gray_r")
        row[0].set_ylabel("class token" if query == "class" else f"query {query[0]}, {query[1]}")
        for axis, number in zip(row[1:], heads, strict=True):
            seen = alpha_HNN[number, index, special:].view(rows, columns).numpy()
            axis.imshow(shown, cmap="gray_r")
            axis.imshow(seen, cmap="inferno", alpha=0.65, extent=extent, vmin=0)
            axis.set_title(f"head {number}, at most {float(seen.max()):.2f}")
        for place, axis in enumerate(row):
            axis.set_xticks([])
            axis.set_yticks([])
            if query != "class":
                x, y = (query[1] + 0.5) * width / columns - 0.5, (query[0] + 0.5) * height / rows - 0.5
                axis.plot([x], [y], "+", color="white" if place else "black", markersize=9)
    figure.suptitle(f"layer {layer}: what a query (+) reads", fontsize=9)
    return figure


def draw_carried(net: ViT | GPT, alphas: dict[int, Tensor], head: int | None) -> Figure | None:
    """The mean weight of the pairs of each offset, a row for each layer and a column for each head."""
    grid = net.config.token_grid
    rows: dict[int, list[tuple[str, Tensor]]] = {}
    for layer, alpha_BHNN in alphas.items():
        if grid.shape is None or alpha_BHNN.shape[-1] != grid.num_tokens or grid.latents:
            continue
        means = carried(grid.offsets(), alpha_BHNN.mean(0))
        chosen = [("all heads", means.mean(0)), *((f"head {i}", m) for i, m in enumerate(means))]
        rows[layer] = chosen[: _HEADS + 1] if head is None else [chosen[head + 1]]
    if not rows:
        return None
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(2.1 * columns + 0.4, 1.9 * len(rows) + 0.6))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (layer, maps) in zip(axes, rows.items(), strict=True):
        for axis in row[len(maps) :]:
            axis.set_axis_off()
        for axis, (name, numbers) in zip(row, maps, strict=False):
            draw_map(axis, numbers, 0.0, float(numbers.max()))
            axis.set_title(f"layer {layer}, {name}, ≤ {float(numbers.max()):.2f}")
    figure.suptitle("mean weight of the pairs of each offset δ = query − key", fontsize=9)
    return figure


def carried(grid: OffsetGrid, alpha_HNN: Tensor) -> Tensor:
    """The mean weight[H, …] over the pairs of each offset of an unshared grid, least offset first."""
    special = int(grid.class_token)
    table = grid.table[special:, special:].flatten()
    here = table >= 0
    alpha = alpha_HNN[:, special:, special:].flatten(1)[:, here]
    entries = grid.num_offsets - 3 * special
    sums = alpha.new_zeros(len(alpha), entries).index_add_(1, table[here], alpha)
    counts = torch.bincount(table[here], minlength=entries).clamp_min(1)
    sides = [n if grid.causal else 2 * n - 1 for n in grid.shape]
    return (sums / counts).view(-1, *sides)


def picture_of(image: Tensor) -> np.ndarray:
    """image[channels, height, width] as Matplotlib draws it: grey, or colours stretched to 0 … 1."""
    image = image.float().cpu()
    if len(image) != 3:
        return image[0].numpy()
    image = image.permute(1, 2, 0)
    return ((image - image.min()) / (image.max() - image.min()).clamp_min(1e-6)).numpy()
