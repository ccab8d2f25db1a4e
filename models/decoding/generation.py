"""Generation of text by a GPT, token by token; layers keep what they need of the tokens before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.mixers.interface import Mixer
from models.transformer import GPT, Layer


class CachedNet:
    """A GPT that is given the tokens of a sequence a few at a time."""

    def __init__(self, net: GPT) -> None:
        self._net, self._seen = net, 0
        self._layers = [_CachedLayer(layer) for layer in net.layers if isinstance(layer, Layer)]
        assert len(self._layers) == len(net.layers)

    def logits(self, ids_Bn: Tensor) -> Tensor:
        """[B, V] for the token after these, which follow all given before; at most `tokens` in all."""
        net, first = self._net, self._seen
        self._seen += ids_Bn.shape[1]
        x_BnC = net.embedding(ids_Bn)
        if net.positions is not None:
            known = net.positions(x_BnC) if isinstance(net.positions, nn.Module) else net.positions
            x_BnC = x_BnC + known[:, first : self._seen]
        x_BnC = net.embedding_norm(x_BnC)
        for layer in self._layers:
            x_BnC = layer.extend(x_BnC)
        return net.head(net.norm(x_BnC[:, -1:]))[:, 0]


class _CachedLayer:
    """See `Layer.forward`; without dropout."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._mix = layer.mixer.cache().extend
        self._feed = layer.mlp.cache().extend if isinstance(layer.mlp, Mixer) else layer.mlp

    def extend(self, x_BnC: Tensor) -> Tensor:
        layer = self._layer
        x_BnC = x_BnC + layer.mixer_scale(self._mix(layer.mixer_norm(x_BnC)))
        return x_BnC + layer.mlp_scale(self._feed(layer.mlp_norm(x_BnC)))


class WholeNet:
    """The same without a cache: all tokens pass the whole net for each new one."""

    def __init__(self, net: GPT) -> None:
        self._net = net
        self._ids_Bn: Tensor | None = None

    def logits(self, ids_Bn: Tensor) -> Tensor:
        self._ids_Bn = ids_Bn if self._ids_Bn is None else torch.cat((self._ids_Bn, ids_Bn), 1)
        B, n = self._ids_Bn.shape
        later = ids_Bn.new_zeros(B, self._net.config.tokens - n)  # no token before them sees these
        return self._net.logits(torch.cat((self._ids_Bn, later), 1))[:, n - 1]


def recomputed_mixers(net: GPT) -> list[str]:
    """The mixers, by class name, that have no cache of their own."""
    mixers = [part for part in net.modules() if isinstance(part, Mixer)]
    return list(dict.fromkeys(type(mixer).__name__ for mixer in mixers if mixer.cache().recomputes))


@dataclass(frozen=True)
class Choice:
    """How a token is drawn from logits [V].

    temperature   divides the logits; 0: the most probable token
    top_k         among so many of the most probable; None: all
    words         ids below it; a vocabulary may be padded
    """

    temperature: float
    top_k: int | None
    words: int

    def draw(self, logits_V: Tensor, generator: torch.Generator) -> int:
        """An id; on the CPU, so that a seed draws the same on every device."""
        logits = logits_V[: self.words].double().cpu()
        if self.temperature == 0:
            return int(logits.argmax())
        if self.top_k is not None and self.top_k < len(logits):
            least = logits.topk(self.top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return int(torch.multinomial((logits / self.temperature).softmax(0), 1, generator=generator))


@torch.no_grad()
def generate(
    net: GPT, prompt: list[int], choice: Choice, seed: int, tokens: int, cached: bool = True
) -> Iterator[int]:
    """The `tokens` ids after a prompt of 1 to N ids.

    Where the context of N tokens is full, its second half begins a new one.
    """
    device, N = net.embedding.weight.device, net.config.tokens
    generator = torch.Generator().manual_seed(seed)
    build = CachedNet if cached else WholeNet
    context, given, decoder = prompt, prompt, build(net)
    for _ in range(tokens):
        if len(context) > N:
            context = context[-(N // 2 or 1) :]
            given, decoder = context, build(net)
        logits_BV = decoder.logits(torch.tensor([given], device=device))
        given = [choice.draw(logits_BV[0], generator)]
        context = context + given
        yield given[0]
