"""What the tests of the walk over bands run in a process whose Triton interprets kernels."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import torch

from models.dealing import deal
from models.ops.fused.bands import walk
from models.ops.fused.bands.operators import bands_backward, bands_forward
from models.ops.fused.bands.walk import BandWalk
from models.ops.streamed import PairWalk
from models.ops.walk.schedule import whole_schedule
from tests.models.ops.fused.interpreted import Case, Layer, relative_errors


class BandLayer(Layer):
    """A layer whose pairs are visited in bands."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.schedule = whole_schedule(case.grid, row_work=1e6)
        assert self.schedule.in_bands

    def arguments(self):
        return self.recipe, self.schedule, self.sources(self.x, self.W), list(self.banks())

    def banks(self):
        return [self.W[name] for name in self.case.relative]


def errors(case: Case, samples: int | None = None) -> list[float]:
    """Relative errors of out, ∂x and each ∂W against the definition; with `samples` so many at a time."""
    layer = BandLayer(case)
    assert BandWalk.why_not(*layer.arguments()) is None
    plan = walk._plan

    def cut(*arguments):
        found = plan(*arguments)
        assert samples is None or found.samples == samples, found.samples
        return found

    with mock.patch.object(walk, "_plan", cut):
        return relative_errors(layer.run(BandWalk), layer.reference())


def bfloat16_errors(case: Case) -> tuple[list[float], list[float]]:
    """Of the kernels and of the walk in torch's operators, both in bfloat16."""
    layer = BandLayer(replace(case, dtype=torch.bfloat16, bank_dtype=torch.float32))
    reference = layer.reference()
    return tuple(relative_errors(layer.run(each), reference) for each in (BandWalk, PairWalk))


def repeats(case: Case) -> bool:
    """Whether two runs give the same bits."""
    layer = BandLayer(replace(case, dtype=torch.bfloat16))
    return all(map(torch.equal, layer.run(BandWalk), layer.run(BandWalk)))


def shard_errors(case: Case, ranks: int) -> list[float]:
    """Relative errors of lse, out and all gradients, where each of `ranks` visits some of the bands."""
    layer = BandLayer(case)
    recipe, schedule, sources, banks = layer.arguments()
    lse, (out,), _ = PairWalk.forward(recipe, schedule, sources, banks)
    grad = layer.grad_out.unflatten(2, out.shape[2:])
    delta = (grad * out).sum(-1)
    wanted = PairWalk.backward(recipe, schedule, sources, banks, [], lse, delta, [grad])
    lses, outs = [], []
    totals = [torch.zeros_like(t) for t in (*sources, *banks)]
    for share in deal(schedule, ranks):
        held = slice(None) if share.entries is None else list(share.entries)
        part, local = share.schedule(schedule), [bank[held] for bank in banks]
        assert not part.complete
        found = BandWalk.forward(recipe, part, sources, local)
        lses.append(found[0])
        outs.append(found[1][0])
        grads = BandWalk.backward(recipe, part, sources, local, found[2], lse, delta, [grad])
        for total, one in zip(totals[: len(sources)], grads[0], strict=True):
            total += one
        for total, one in zip(totals[len(sources) :], grads[1], strict=True):
            total[held] += one
    weights = torch.stack(lses).softmax(0).unsqueeze(-1)
    merged = sum(weight * o for weight, o in zip(weights, outs, strict=True))
    return relative_errors(
        [torch.stack(lses).logsumexp(0), merged, *totals], [lse, out, *wanted[0], *wanted[1]]
    )


def check_operators(case: Case) -> None:
    """torch's own checks of a custom operator: its schema, and that its fake agrees with it."""
    layer, calls = BandLayer(case), []
    recipe, schedule, sources, banks = layer.arguments()

    def record(operator):
        return lambda *arguments: calls.append((operator, arguments)) or operator(*arguments)

    with (
        mock.patch.object(walk, "bands_forward", record(bands_forward)),
        mock.patch.object(walk, "bands_backward", record(bands_backward)),
    ):
        lse, outs, kept = BandWalk.forward(recipe, schedule, sources, banks)
        grad = layer.grad_out.unflatten(2, outs[0].shape[2:])
        BandWalk.backward(recipe, schedule, sources, banks, kept, lse, lse, [grad])
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
