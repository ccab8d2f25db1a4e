"""What is measured on an evaluation set, and how a result table shows it. (Nets own their loss.)"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a target that does not count
Samples = tuple[Tensor, Tensor]  # inputs and targets, such as a Batch


def spread(values: Sequence[float], digits: int) -> str:
    """One value, or the mean ± the sample standard deviation of several."""
    mean = fmean(values)
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and math.isfinite(mean) else ""
    return f"{mean:.{digits}f}{deviation}"


class Classification:
    """Accuracy in per cent of logits[B, classes] against labels[B]; with `top5` also top-5 accuracy.

    Samples whose label is IGNORED do not count.
    """

    headline = "accuracy"

    def __init__(self, top5: bool = False) -> None:
        self.top5 = top5
        self.title = "test accuracy, top-1 / top-5, %" if top5 else "test accuracy, %"

    def sums(self, model: nn.Module, batch: Samples) -> Tensor:
        """Sums over a batch, float64 [4]: correct at top-1, correct at top-5, losses, samples."""
        inputs, targets = batch
        logits = model(inputs).float()
        top1 = (logits.argmax(-1) == targets).sum()
        five = logits.topk(min(5, logits.shape[-1])).indices
        top5 = (five == targets.unsqueeze(1)).sum()
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return torch.stack([n.double() for n in (top1, top5, loss, (targets != IGNORED).sum())])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The metrics of a whole evaluation set from the total of its `sums`."""
        top1, top5, loss, samples = sums
        five = {"accuracy_top5": 100 * top5 / samples} if self.top5 else {}
        return {"accuracy": 100 * top1 / samples} | five | {"loss": loss / samples}

    def cell(self, runs: Sequence[dict[str, float]]) -> str:
        """The metrics as a result table shows them; of several seeds, mean ± deviation."""
        shown = ["accuracy"] + (["accuracy_top5"] if self.top5 else [])
        return " / ".join(spread([metrics[name] for metrics in runs], 1) for name in shown)


class LanguageModel:
    """Perplexity of the next ids[B, N]; IGNORED targets do not count."""

    headline = "perplexity"
    title = "validation perplexity (lower is better)"

    def sums(self, model: nn.Module, batch: Samples) -> Tensor:
        """Sums over a batch, float64 [2]: losses of all tokens in nats, tokens."""
        inputs, targets = batch
        count = (targets != IGNORED).sum().double()
        loss = torch.where(count > 0, model(inputs, targets).double() * count, 0.0)
        return torch.stack([loss, count])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The metrics of a whole evaluation set from the total of its `sums`."""
        loss = sums[0] / sums[1]
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf, "loss": loss}

    def cell(self, runs: Sequence[dict[str, float]]) -> str:
        """The metrics as a result table shows them; of several seeds, mean ± deviation."""
        return spread([metrics["perplexity"] for metrics in runs], 2)


Task = Classification | LanguageModel
