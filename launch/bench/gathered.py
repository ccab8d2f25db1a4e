"""`translution bench gathered`: the streamed layer against the same layer over gathered N² weights.

7 × 7 tokens and a class token, C = 192, 3 heads, B = 8, float32, one thread, forward and backward of
all in one run; values and gradients are compared. The gathered layer is written twice:

as the paper's equations   x[B, N, 1, 1, C] @ W[1, N, N, C, D], which repeats the weights for every
                           sample, as the public code does; the target is 50 times its speed
batch as rows              the batch as the rows of N² products, so that weights are gathered once
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from models import OffsetGrid, Translution
from trainer.reporting.table import Table

BATCH, WIDTH, HEADS, HEAD_DIM = 8, 192, 3, 64
TARGET = 50  # times the speed of the paper's equations
STREAMED_PER_ROUND = 5


def broadcast_product(f_BNC: Tensor, W_NNCD: Tensor, query: bool) -> Tensor:
    """f_i·W_δ (query) or f_j·W_δ for every pair → [B, N, N, D], the weights repeated for the batch."""
    f = f_BNC[:, :, None] if query else f_BNC[:, None]
    return (f.unsqueeze(-2) @ W_NNCD).squeeze(-2)


def batched_product(f_BNC: Tensor, W_NNCD: Tensor, query: bool) -> Tensor:
    """The same, the batch as rows."""
    f_NBC = f_BNC.transpose(0, 1)
    f = f_NBC[:, None] if query else f_NBC[None]
    f = f.expand(*W_NNCD.shape[:2], *f_NBC.shape[1:])
    return torch.bmm(f.flatten(0, 1), W_NNCD.flatten(0, 1)).view(*f.shape[:3], -1).permute(2, 0, 1, 3)


def gathered_layer(layer: Translution, x_BNC: Tensor, product: Callable[..., Tensor]) -> Tensor:
    """The layer with W_δ gathered for every pair."""
    q, k, v = (
        product(x_BNC, layer.get_parameter(f"{name}_bank")[layer.grid.table], name == "q").unflatten(
            -1, (HEADS, HEAD_DIM)
        )
        for name in "qkv"
    )
    alpha = ((q * k).sum(-1) / HEAD_DIM**0.5).softmax(2)
    return layer.out((alpha.unsqueeze(-1) * v).sum(2).flatten(2))


def bench_gathered(rounds: int) -> Table:
    """Time each gathered form once a round, and the streamed layer STREAMED_PER_ROUND times beside it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = Translution(WIDTH, OffsetGrid((7, 7), class_token=True), HEADS, HEAD_DIM)
    x = torch.randn(BATCH, layer.grid.num_tokens, WIDTH, requires_grad=True)
    grad_out = torch.randn(x.shape)
    inputs = [x, *layer.parameters()]

    def run(forward: Callable[[Tensor], Tensor]) -> tuple[float, list[Tensor]]:
        """CPU seconds of forward and backward; the output and all gradients."""
        start = time.process_time()
        out = forward(x)
        grads = torch.autograd.grad(out, inputs, grad_out)
        return time.process_time() - start, [out.detach(), *grads]

    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "gathered, as the equations": lambda x: gathered_layer(layer, x, broadcast_product),
        "gathered, batch as rows": lambda x: gathered_layer(layer, x, batched_product),
    }
    run(layer)  # builds its tables
    streamed: list[float] = []
    gathered: dict[str, list[float]] = {name: [] for name in forms}
    differences = dict.fromkeys(forms, 0.0)
    for _ in range(rounds):
        for name, forward in forms.items():
            seconds, expected = run(forward)
            gathered[name].append(seconds)
            repeats = [run(layer) for _ in range(STREAMED_PER_ROUND)]
            streamed += [seconds for seconds, _ in repeats]
            got = repeats[-1][1]
            pairs = zip(got, expected, strict=True)
            differences[name] = max(differences[name], *(float((a - b).norm() / b.norm()) for a, b in pairs))
    return _table(streamed, gathered, differences)


def _table(streamed: list[float], gathered: dict[str, list[float]], differences: dict[str, float]) -> Table:
    table = Table(f"One layer, forward + backward, one thread (target: {TARGET} times the equations' speed)")
    ours = statistics.median(streamed)
    table.put("streamed", "CPU s", f"{ours:.3f}")
    table.put("streamed", "runs", str(len(streamed)))
    for name, times in gathered.items():
        theirs = statistics.median(times)
        table.put(name, "CPU s", f"{theirs:.3f}")
        table.put(name, "runs", str(len(times)))
        table.put(name, "times slower", f"{theirs / ours:.0f}")
        table.put(name, "largest relative difference", f"{differences[name]:.0e}")
    return table
