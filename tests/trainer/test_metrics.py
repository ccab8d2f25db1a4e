"""Losses and measures: what counts, and what a table shows."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.data.source import Batch
from trainer.metrics import IGNORED, Classification


def test_top1_and_top5_count_what_is_not_ignored():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]] * 5)
    targets = torch.tensor([0, 4, 5, 0, IGNORED])
    task = Classification(top5=True)
    sums = task.sums(nn.Identity(), Batch(logits, targets))
    measures = task.metrics(sums.tolist())
    assert measures["accuracy"] == 50
    assert measures["accuracy_top5"] == 75
    assert measures["loss"] == pytest.approx(float(F.cross_entropy(logits[:4], targets[:4])))
    assert task.cell(measures) == "50.0 / 75.0"
    assert "accuracy_top5" not in Classification().metrics(sums.tolist())


def test_fewer_than_five_classes_have_a_top5_of_all():
    task = Classification(top5=True)
    sums = task.sums(nn.Identity(), Batch(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])))
    assert task.metrics(sums.tolist())["accuracy_top5"] == 100


def test_soft_targets_give_the_mean_of_both_labels_losses():
    logits = torch.randn(2, 3, dtype=torch.float64).float()
    soft = torch.tensor([[0.25, 0.75, 0], [0, 0, 0]])
    one, other = (-F.log_softmax(logits[0], 0)[:2]).tolist()
    loss = Classification().loss(nn.Identity(), Batch(logits, soft))
    assert float(loss) == pytest.approx((0.25 * one + 0.75 * other) / 2, rel=1e-5)
    assert not math.isnan(float(Classification().loss(nn.Identity(), Batch(logits, torch.zeros(2, 3)))))
