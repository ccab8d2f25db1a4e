"""A rehearsed rank does what the same rank of a real run does: memory, collectives, FLOPs."""

import pytest

from launch.rehearse.rank import Part, rehearse_rank
from launch.rehearse.ranks import rehearse
from parallel.spawn import run_processes
from tests.launch.rehearse.nets import ATTENTION, GPT, MIXER, VIT, config, zero
from tests.launch.rehearse.real_steps import measure
from trainer.config.run import RunConfig

CASES = {
    1: {
        "vit-many-micro-batches": config(VIT, batch=10, accumulate=5),
        "attention-block": config({**VIT, "mixer": ATTENTION}, 32, activations="block"),
    },
    2: {
        "offset-operator-bf16": config(VIT, offset=2, activations="operator", precision="bf16"),
        "tensor-gpt": config(GPT, tensor=2),
        "zero-3-accumulate": config(GPT, accumulate=2, **zero(3)),
    },
    4: {"data-offset-zero-3-bf16": config(GPT, precision="bf16", **zero(3, offset=2))},
}
SOAK = {
    1: {
        "alpha": config({**VIT, "mixer": MIXER | {"rank": 4}}),
        "zero-1-alone": config(VIT, **zero(1)),
        "keep": config({**VIT, "mixer": MIXER | {"memory": "keep"}}),
    },
    2: {
        "data": config(VIT),
        "zero-0": config(VIT, **zero(0)),
        "zero-1-bf16": config(VIT, precision="bf16", **zero(1)),
        "zero-2-many": config(VIT, batch=16, accumulate=4, **zero(2)),
        "zero-3-offload": config(VIT, **zero(3, offload_optimizer=True)),
    },
    4: {
        "offset-block": config(VIT, offset=4, activations="block"),
        "offset-tensor": config(VIT, offset=2, tensor=2),
        "data-tensor-zero-1": config(GPT, **zero(1, tensor=2)),
    },
}


def check(processes: int, cases: dict[str, RunConfig], every: bool = True) -> None:
    """The rehearsal of the first and of the last rank against the real ones; without `every` of one of them,
    in turns."""
    measured = run_processes(measure, processes, list(cases.values()), seconds=110)
    ends = sorted({0, processes - 1})
    chosen = [
        (number, rank)
        for number in range(len(cases))
        for rank in (ends if every else [ends[(number + 1) % len(ends)]])
    ]
    names, configs = list(cases), list(cases.values())
    reports = rehearse([Part(configs[number], processes, rank, None) for number, rank in chosen], 110)
    for (number, rank), report in zip(chosen, reports, strict=True):
        real, where = measured[rank][number], f"{names[number]}, rank {rank}"
        assert report.peak.bytes == pytest.approx(real.peak, rel=0.03), where
        assert [each.same for each in report.collectives] == real.collectives, where
        assert report.work.flops == real.flops, where


LONG = [pytest.param(n, marks=pytest.mark.soak) if n != 2 else n for n in CASES]


@pytest.mark.parametrize("processes", LONG)
def test_a_rehearsed_step_is_the_real_one(processes: int):
    check(processes, CASES[processes], every=processes != 2)


@pytest.mark.soak
@pytest.mark.parametrize("processes", SOAK)
def test_more_rehearsed_steps_are_the_real_ones(processes: int):
    check(processes, SOAK[processes])


def test_the_peak_is_made_of_kinds_and_says_when():
    peak = rehearse_rank(Part(config(VIT), 1, 0, None)).peak
    assert sum(peak.by_kind.values()) == peak.bytes
    assert {"weights", "states", "gradients", "activations", "inputs"} <= set(peak.by_kind)
    assert peak.moment.startswith("backward of layer")
    assert peak.largest[0].bytes == max(each.bytes for each in peak.largest)


def test_what_goes_to_the_host_is_not_on_the_card():
    deep = {**VIT, "depth": 4}
    plain, offloaded = (
        rehearse_rank(Part(config(deep, 512, precision="bf16", activations=how), 1, 0, "h100"))
        for how in ("block", "block_cpu")
    )
    inputs = 512 * 17 * 16 * 2  # of a layer: batch, tokens, width, bfloat16
    assert plain.peak.moment == "backward of layer 4"
    assert plain.peak.bytes - offloaded.peak.bytes > inputs


def test_the_card_chooses_the_kernels():
    launched = rehearse_rank(Part(config(VIT, precision="bf16", offset=2), 2, 1, "h100")).work
    assert {"fused_forward", "fused_backward"} <= set(launched.by_operator)
    assert 0 < launched.seconds < 1e-2


def test_a_compiled_stage_is_rehearsed_as_it_is_written():
    plain, compiled = (
        rehearse_rank(Part(config({**VIT, "mixer": MIXER | {"compiled": how}}), 1, 0, None))
        for how in (False, True)
    )
    assert compiled.work == plain.work
    assert any("torch.compile" in line for line in compiled.stand_ins)


def test_every_phase_is_rehearsed():
    """Evaluation and the save merge softmaxes and gather states: two a layer, and ZeRO's per parameter."""
    rare = rehearse_rank(Part(config(VIT, offset=2), 2, 0, None)).rare
    assert [each.operation for each in rare] == ["all_reduce"] * 6
    assert {each.axis for each in rare} == {"offset"}  # which is the whole model-parallel group here
