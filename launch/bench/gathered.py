"""One layer of Translution against the same layer as a batched product over gathered N² weights.

    python launch/bench/gathered.py

7 × 7 tokens and a class token, C = 192, 3 heads, B = 8, float32, one thread, forward and backward of
all in one run; values and gradients are compared. The gathered layer is written twice:

as the paper's equations   x[B, N, 1, 1, C] @ W[1, N, N, C, D], which repeats the weights for every
                           sample, as the public code does; the project asks for 50 times its speed
by hand                    the batch as the rows of N² products, so that weights are gathered once
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from models import OffsetGrid, Translution

BATCH, WIDTH, HEADS, HEAD_DIM = 8, 192, 3, 64


def broadcast(f_BNC: Tensor, W_NNCD: Tensor, query: bool) -> Tensor:
    """f_i·W_δ (query) or f_j·W_δ for every pair → [B, N, N, D], the weights repeated for the batch."""
    f = f_BNC[:, :, None] if query else f_BNC[:, None]
    return (f.unsqueeze(-2) @ W_NNCD).squeeze(-2)


def batched(f_BNC: Tensor, W_NNCD: Tensor, query: bool) -> Tensor:
    """The same, the batch as rows."""
    f_NBC = f_BNC.transpose(0, 1)
    f = f_NBC[:, None] if query else f_NBC[None]
    f = f.expand(*W_NNCD.shape[:2], *f_NBC.shape[1:])
    return torch.bmm(f.flatten(0, 1), W_NNCD.flatten(0, 1)).view(*f.shape[:3], -1).permute(2, 0, 1, 3)


def gathered(layer: Translution, x_BNC: Tensor, product: Callable[..., Tensor]) -> Tensor:
    """The layer with W_δ gathered for every pair."""
    q, k, v = (
        product(x_BNC, layer.get_parameter(f"{name}_bank")[layer.grid.table], name == "q").unflatten(
            -1, (HEADS, HEAD_DIM)
        )
        for name in "qkv"
    )
    alpha = ((q * k).sum(-1) / HEAD_DIM**0.5).softmax(2)
    return layer.out((alpha.unsqueeze(-1) * v).sum(2).flatten(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeat", type=int, default=2, help="rounds; ours runs five times in each")
    rounds = parser.parse_args().repeat
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
        "as the equations": lambda x: gathered(layer, x, broadcast),
        "by hand": lambda x: gathered(layer, x, batched),
    }
    run(layer)  # builds its tables
    ours, slow, difference = [], {name: [] for name in forms}, 0.0
    for _ in range(rounds):
        for name, forward in forms.items():
            seconds, expected = run(forward)
            slow[name].append(seconds)
            for _ in range(5):
                seconds, got = run(layer)
                ours.append(seconds)
            pairs = zip(got, expected, strict=True)
            difference = max(difference, *(float((a - b).norm() / b.norm()) for a, b in pairs))
    mine = statistics.median(ours)
    print(f"streamed                    {mine:7.3f} s of CPU time, median of {len(ours)}")
    for name, times in slow.items():
        theirs = statistics.median(times)
        print(f"gathered, {name:17} {theirs:7.3f} s, median of {len(times)}: ratio {theirs / mine:.0f}")
    print(f"asked of the first: 50. Largest relative difference of values and gradients: {difference:.0e}")


if __name__ == "__main__":
    main()
