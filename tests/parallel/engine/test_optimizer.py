"""Which parameters decay, and the learning rate of every step."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from parallel.engine.optimizer import OptimizerConfig, learning_rate, parameter_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.bank = nn.Parameter(torch.zeros(9, 4, 4))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)

    def no_decay(self) -> set[str]:
        return {"token"}


def test_only_matrices_and_banks_decay():
    net = Net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decaying, other = parameter_groups(net, 0.1)
    assert {names[id(p)] for p in decaying["params"]} == {"bank", "head.weight"}
    assert {names[id(p)] for p in other["params"]} == {
        "token",
        "norm.weight",
        "norm.bias",
        "head.bias",
    }
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.1, 0)


def test_the_rate_warms_up_linearly_then_falls_by_a_cosine_to_its_minimum():
    config = OptimizerConfig(steps=11, warmup_steps=4, lr=1.0, min_lr=0.2)
    rates = [learning_rate(step, config) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.6)  # half way
    assert rates[10] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert learning_rate(50, config) == pytest.approx(0.2)


def test_a_run_of_warm_up_alone_has_a_rate():
    config = OptimizerConfig(steps=3, warmup_steps=3, lr=1.0)
    assert [learning_rate(step, config) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
