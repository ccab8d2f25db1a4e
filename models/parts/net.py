"""What image and language nets share: calling them, and how their linear layers begin."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from models.initial import Draw, orthogonal
from models.ops.cross_entropy import WholeVocabulary, summed_cross_entropy
from models.parts.feed_forward import FeedForward

Scheme = Literal["torch", "normal", "gpt2", "xavier", "rwkv"]
STD = 0.02
PARTS = ("projections", "feed-forward", "embeddings", "head", "norms")


def part_of(parameter: str) -> str:
    """The part of a net, one of PARTS, that a parameter of this name belongs to."""
    if ".mlp." in parameter:
        return "feed-forward"
    if ".mixer." in parameter or ".reduce." in parameter or ".local." in parameter:
        return "projections"
    if "norm" in parameter or "_scale." in parameter:
        return "norms"
    return "head" if parameter.startswith("head.") else "embeddings"


class Net(nn.Module):
    """inputs → logits; with targets the mean loss."""

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits; with targets the mean loss (see `loss`)."""
        return self.logits(inputs) if targets is None else self.loss(inputs, targets)

    def logits(self, inputs: Tensor, /) -> Tensor:
        raise NotImplementedError

    def loss(self, inputs: Tensor, targets: Tensor, /) -> Tensor:
        raise NotImplementedError

    def no_decay(self) -> set[str]:
        """Parameters besides norms and biases that weight decay leaves alone: the net's own tokens and
        positions, and what its mixers name."""
        declared = {"class_token", "positions", "latents"}
        for path, module in self.named_modules():
            if path and hasattr(module, "no_decay"):
                own: set[str] = module.no_decay()  # pyright: ignore[reportCallIssue]
                declared |= {f"{path}.{name}" for name in own}
        return declared


def linear_draws(net: nn.Module, scheme: Scheme, layers: int) -> dict[str, Draw]:
    """How all linear layers of a net begin, unless a module inside it says otherwise.

    torch    as torch draws them
    normal   deviation 0.02, biases 0 (arXiv 2106.09681, 2412.17810)
    gpt2     the same; those that end a residual branch 0.02/√(2·layers)
    xavier   uniform within √(6/(inputs + outputs)), biases 0, those of feed-forward layers with deviation
             1e-6; the head 0 (arXiv 2402.12138)
    rwkv     orthogonal head and embedding (the public v4 code)
    """
    if scheme == "torch":
        return {}
    if scheme == "rwkv":
        return _rwkv_ends(net)
    found: dict[str, Draw] = {}
    forwards = [path for path, module in net.named_modules() if isinstance(module, FeedForward)]
    for path, module in net.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        owner, _, leaf = path.rpartition(".")
        inside = owner in forwards
        weight, bias = Draw(std=STD), Draw()
        if scheme == "gpt2" and (leaf == "out" or (inside and leaf == "down")):
            weight = Draw(std=STD / (2 * layers) ** 0.5)
        if scheme == "xavier":
            weight = Draw(bound=(6 / (module.in_features + module.out_features)) ** 0.5)
            weight, bias = (Draw(), bias) if path == "head" else (weight, Draw(std=1e-6) if inside else bias)
        found[f"{path}.weight"] = weight
        if module.bias is not None:
            found[f"{path}.bias"] = bias
    return found


def _rwkv_ends(net: nn.Module) -> dict[str, Draw]:
    rows, columns = net.get_parameter("head.weight").shape
    head = 0.5 * max(1.0, (rows / columns) ** 0.5)
    return {
        "head.weight": orthogonal(head),
        "embedding.weight": orthogonal(1e-4 * max(rows, columns) ** 0.5),
    }


class VocabularyHead(nn.Linear):
    """x[B, N, C] → logits[B, N, V]; with targets[B, N] the sum of the tokens' cross-entropies instead."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__(width, words, bias=False)

    def forward(self, input: Tensor, targets_BN: Tensor | None = None) -> Tensor:
        if targets_BN is None:
            return super().forward(input)
        words = WholeVocabulary(len(self.weight))
        return summed_cross_entropy(input.flatten(0, 1), self.weight, targets_BN.flatten(), words)
