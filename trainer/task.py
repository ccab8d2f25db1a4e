"""What a net is trained for: its loss, and the measure that is reported."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainer.data.source import Batch

IGNORED = -100  # a target that does not count


class Classification:
    """Cross-entropy of logits[B, classes] against labels[B]; reports accuracy in per cent."""

    headline = "accuracy"
    title = "test accuracy, %"
    decimals = 1

    def loss(self, model: nn.Module, batch: "Batch") -> Tensor:
        """The mean loss of a batch, a scalar in float32."""
        return F.cross_entropy(model(batch.inputs).float(), batch.targets)

    def sums(self, model: nn.Module, batch: "Batch") -> Tensor:
        """Sums over a batch, float64 [3]: correct answers, losses, samples."""
        logits = model(batch.inputs).float()
        correct = (logits.argmax(-1) == batch.targets).sum().double()
        loss = F.cross_entropy(logits, batch.targets, reduction="sum").double()
        return torch.stack([correct, loss, torch.full_like(loss, len(batch.targets))])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The measures of a whole evaluation set from its summed `sums`."""
        correct, loss, samples = sums
        return {"accuracy": 100 * correct / samples, "loss": loss / samples}


class LanguageModel:
    """Cross-entropy of logits[B, N, V] against the next ids[B, N]; reports perplexity.

    Targets that are IGNORED count neither in the loss nor in the number of tokens.
    """

    headline = "perplexity"
    title = "validation perplexity (lower is better)"
    decimals = 2

    def loss(self, model: nn.Module, batch: "Batch") -> Tensor:
        """The mean loss of a batch's tokens, a scalar in float32."""
        logits = model(batch.inputs).flatten(0, 1).float()
        return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED)

    def sums(self, model: nn.Module, batch: "Batch") -> Tensor:
        """Sums over a batch, float64 [2]: losses of all tokens in nats, tokens."""
        logits = model(batch.inputs).flatten(0, 1).float()
        targets = batch.targets.flatten()
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return torch.stack([losses.double().sum(), (targets != IGNORED).sum().double()])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The measures of a whole evaluation set from its summed `sums`."""
        loss = sums[0] / sums[1]
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf, "loss": loss}


Task = Classification | LanguageModel
