"""Numbers of steps are handed out in order, late by as many steps as the device is ahead."""

import math

import pytest
import torch

from parallel.engine.interface import VOTES, StepResult
from trainer.faults.step_numbers import StepNumbers, StepReader


def result(loss: float) -> StepResult:
    return StepResult(torch.tensor(loss), torch.tensor(1.0), 0.1, torch.zeros(VOTES))


@pytest.mark.parametrize(("late", "steps"), [(None, [[1], [2], [3], []]), (1, [[], [1], [2], [3]])])
def test_each_step_is_handed_out_once(late: int | None, steps: list[list[int]]):
    reader = StepReader(torch.device("cpu"), late)
    read = [reader.add(step, 8 * step, result(step)) for step in (1, 2, 3)]
    assert [[row.step for row in rows] for rows in [*read, reader.rest()]] == steps
    assert reader.rest() == []


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0)])
def test_a_step_without_a_finite_loss_and_gradient_was_skipped(loss: float, norm: float):
    numbers = StepNumbers(1, 8, loss, norm, 0.1, [0.0] * VOTES)
    assert numbers.skipped
    assert not numbers._replace(loss=1.0, grad_norm=1.0).skipped
