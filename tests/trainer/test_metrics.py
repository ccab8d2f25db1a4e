"""Metrics: what counts, and what a table shows."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.data.source import Batch
from trainer.metrics import IGNORED, Classification, LanguageModel


def test_ignored_samples_count_neither_in_top1_nor_in_top5():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]] * 5)
    targets = torch.tensor([0, 4, 5, 0, IGNORED])
    task = Classification(top5=True)
    sums = task.sums(nn.Identity(), Batch(logits, targets))
    metrics = task.metrics(sums.tolist())
    assert metrics["accuracy"] == 50
    assert metrics["accuracy_top5"] == 75
    assert metrics["loss"] == pytest.approx(float(F.cross_entropy(logits[:4], targets[:4])))
    assert task.cell([metrics]) == "50.0 / 75.0"
    assert "accuracy_top5" not in Classification().metrics(sums.tolist())


def test_top5_of_fewer_than_five_classes_is_100_per_cent():
    task = Classification(top5=True)
    sums = task.sums(nn.Identity(), Batch(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])))
    assert task.metrics(sums.tolist())["accuracy_top5"] == 100


def test_a_cell_of_several_seeds_is_mean_and_sample_deviation():
    runs = [{"accuracy": 40.0}, {"accuracy": 42.0}, {"accuracy": 47.0}]
    assert Classification().cell(runs) == "43.0 ± 3.6"
    assert LanguageModel().cell([{"perplexity": 7.25}, {"perplexity": 7.15}]) == "7.20 ± 0.07"
    assert LanguageModel().cell([{"perplexity": 7.25}, {"perplexity": math.inf}]) == "inf"
