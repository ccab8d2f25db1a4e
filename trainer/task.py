"""What a net is trained for: its loss, and the measure that is reported."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainer.data.source import Batch


class Classification:
    """Cross-entropy of logits[B, classes] against labels[B]; reports accuracy in per cent."""

    headline = "accuracy"
    title = "test accuracy, %"

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


Task = Classification
