"""Gradients are summed over replicas in buckets, while backward runs, in the last micro-batch only."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from parallel.engine import gradients
from parallel.engine.gradients import GradientSum
from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import TorchEngine
from parallel.mesh import ParallelConfig, join_mesh
from parallel.processes import join_processes
from parallel.spawn import run_processes
from tests.parallel.engine.test_torch_engine import Net
from trainer.train import train_step

WEIGHT = 8 * 8 * 8  # bytes of a layer's matrix


class Group:
    """Records what is sent, and when; sums over one rank."""

    def __init__(self, events):
        self.events = events

    def allreduce_coalesced(self, tensors, options):
        assert options.asyncOp
        self.events.append(("send", [tuple(t.shape) for t in tensors]))
        return self

    def wait(self):
        self.events.append(("wait", None))


def deep_net(layers=3):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(layers))).double()


def steps(net, count, accumulate, backward, events):
    """Events of each step of a GradientSum over `net`."""
    one = GradientSum(list(net.parameters()), Group(events))
    found = []
    for _ in range(count):
        events.clear()
        for micro in range(accumulate):
            one.before_backward(last=micro == accumulate - 1)
            backward()
            events.append(("backward", None))
        one.finish()
        net.zero_grad()
        found.append([name for name, _ in events])
    return found


def test_buckets_are_sent_while_backward_runs_and_only_in_the_last_micro_batch(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", WEIGHT)
    net, events = deep_net(), []
    net[0].register_full_backward_pre_hook(lambda *_: events.append(("first layer", None)))

    def backward():
        net(torch.ones(2, 8, dtype=torch.float64, requires_grad=True)).sum().backward()

    first, later = steps(net, 2, 2, backward, events)
    expected = ["first layer", "backward", "send", "send", "first layer", "send", "backward"]
    assert [each for each in later if each != "wait"] == expected
    assert first == later  # the first micro-batch has already told how often each gradient is added to
    assert later[-3:] == ["wait"] * 3


def test_small_gradients_share_a_collective_and_a_large_one_has_its_own(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 2 * WEIGHT)
    net, events = deep_net(3), []
    steps(net, 1, 1, lambda: net(torch.ones(2, 8).double()).sum().backward(), events)
    assert [shapes for name, shapes in events if name == "send"] == [[(8, 8)] * 2, [(8, 8)]]


def test_a_parameter_of_several_recomputed_layers_is_sent_after_its_last_gradient(monkeypatch):
    """Reentrant checkpoints add to it once for each layer."""
    monkeypatch.setattr(gradients, "BUCKET_BYTES", WEIGHT)
    net, events = deep_net(1), []

    def backward():
        x = torch.ones(2, 8, dtype=torch.float64, requires_grad=True)
        for _ in range(3):
            x = checkpoint(net[0], x, use_reentrant=True)
            x.register_hook(lambda grad: events.append(("layer", None)))
        x.sum().backward()

    first, later = steps(net, 2, 1, backward, events)
    assert first == [*["layer"] * 3, "backward", "send", "wait"]  # nothing overlaps yet
    assert later == [*["layer"] * 3, "send", "backward", "wait"]


def test_a_gradient_that_comes_after_its_bucket_was_sent_is_an_error():
    net, events = deep_net(1), []
    one = GradientSum(list(net.parameters()), Group(events))
    for times in (1, 2):
        one.before_backward(last=True)
        x = torch.ones(2, 8, dtype=torch.float64, requires_grad=True)
        for _ in range(times):
            x = checkpoint(net[0], x, use_reentrant=True)
        if times == 1:
            x.sum().backward()
            one.finish()
            continue
        with pytest.raises(AssertionError, match="after it had been sent"):
            x.sum().backward()


def test_replicas_step_alike_and_as_one_process_on_all_samples():
    one, other = run_processes(weights_after, 2, 2, seconds=60)
    assert one == other
    assert one == pytest.approx(weights_after(replicas=1), rel=1e-12)


def weights_after(replicas):
    """All weights after three steps, on this rank's share of the same two samples; one is never used."""
    gradients.BUCKET_BYTES = 40
    mesh = None
    if replicas > 1:
        join_processes(torch.device("cpu"))
        mesh = join_mesh(ParallelConfig())
    torch.manual_seed(0)
    net = Net(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).double()
    net.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    engine = TorchEngine(
        net, OptimizerConfig(steps=9, lr=0.1, weight_decay=0.0), torch.device("cpu"), mesh=mesh, accumulate=2
    )
    samples, labels = torch.randn(4, 6).double(), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        if mesh is None:  # as two replicas would add up
            batches = [(samples[i::2], labels[i::2]) for i in range(2)]
        else:
            batches = [(samples[i::2][mesh.rank, None], labels[i::2][mesh.rank, None]) for i in range(2)]
        train_step(engine, batches)
    if dist.is_initialized():
        assert net.unused.grad is None
    return nn.utils.parameters_to_vector(net.parameters()).tolist()
