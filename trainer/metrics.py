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
    """Cross-entropy of logits[B, classes]; reports accuracy in per cent, with `top5` also that of five.

    Targets are labels[B], or in training shares of the classes [B, classes], as mixed images have.
    Labels that are IGNORED count neither among the answers nor among the samples.
    """

    headline = "accuracy"

    def __init__(self, top5: bool = False) -> None:
        self.top5 = top5
        self.title = "test accuracy, top-1 / top-5, %" if top5 else "test accuracy, %"

    def loss(self, model: nn.Module, batch: "Batch") -> Tensor:
        """The mean loss of a batch, a scalar in float32."""
        return F.cross_entropy(model(batch.inputs).float(), batch.targets)

    def sums(self, model: nn.Module, batch: "Batch") -> Tensor:
        """Sums over a batch, float64 [4]: answers correct and among the first five, losses, samples."""
        logits = model(batch.inputs).float()
        correct = (logits.argmax(-1) == batch.targets).sum()
        five = logits.topk(min(5, logits.shape[-1])).indices
        near = (five == batch.targets.unsqueeze(1)).sum()
        loss = F.cross_entropy(logits, batch.targets, ignore_index=IGNORED, reduction="sum")
        return torch.stack([n.double() for n in (correct, near, loss, (batch.targets != IGNORED).sum())])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The measures of a whole evaluation set from its summed `sums`."""
        correct, near, loss, samples = sums
        five = {"accuracy_top5": 100 * near / samples} if self.top5 else {}
        return {"accuracy": 100 * correct / samples} | five | {"loss": loss / samples}

    def cell(self, measures: dict[str, float]) -> str:
        """The measures as a result table shows them."""
        shown = [measures["accuracy"]] + ([measures["accuracy_top5"]] if self.top5 else [])
        return " / ".join(f"{value:.1f}" for value in shown)


class LanguageModel:
    """Cross-entropy of logits[B, N, V] against the next ids[B, N]; reports perplexity.

    Targets that are IGNORED count neither in the loss nor in the number of tokens.
    """

    headline = "perplexity"
    title = "validation perplexity (lower is better)"

    def loss(self, model: nn.Module, batch: "Batch") -> Tensor:
        """The mean loss of a batch's tokens, a scalar in float32."""
        losses = model.token_losses(model(batch.inputs), batch.targets)  # pyright: ignore
        return losses.sum() / (batch.targets != IGNORED).sum()

    def sums(self, model: nn.Module, batch: "Batch") -> Tensor:
        """Sums over a batch, float64 [2]: losses of all tokens in nats, tokens."""
        losses = model.token_losses(model(batch.inputs), batch.targets)  # pyright: ignore
        return torch.stack([losses.double().sum(), (batch.targets != IGNORED).sum().double()])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The measures of a whole evaluation set from its summed `sums`."""
        loss = sums[0] / sums[1]
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf, "loss": loss}

    def cell(self, measures: dict[str, float]) -> str:
        """The measures as a result table shows them."""
        return f"{measures['perplexity']:.2f}"


Task = Classification | LanguageModel
