"""DeepSpeed's JSON: sizes for clusters, float32 gradients, and keys of the user's that fit ours."""

import pytest
import torch

from parallel.engine.build import build_engine
from parallel.engine.deepspeed_settings import BUCKET, check_deepspeed_keys, deepspeed_settings, zero_sizes
from parallel.engine.optimizer import OptimizerConfig
from parallel.errors import UserError
from parallel.mesh import ParallelConfig, forget_mesh, join_mesh
from parallel.processes import join_processes
from parallel.spawn import run_processes
from tests.parallel.engine.test_deepspeed_engine import NET
from trainer.data.source import Batch
from trainer.train import train_step


def deepspeed(zero=3, **more):
    return ParallelConfig.model_validate({"engine": "deepspeed", "zero": zero} | more)


def settings(parallel, precision="bf16", numbers=10**9, layer=10**8):
    sizes = zero_sizes(parallel, numbers, layer)
    return deepspeed_settings(OptimizerConfig(), parallel, precision, 4, 2, sizes)


def test_zero_3_gathers_the_next_layer_ahead_and_fills_links():
    zero = settings(deepspeed())["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == 10**8
    assert zero["stage3_max_live_parameters"] == 2 * 10**8
    assert zero["reduce_bucket_size"] == BUCKET
    assert zero["overlap_comm"]


def test_a_small_net_has_small_buffers():
    assert zero_sizes(deepspeed(), 1001, 100).bucket == 1002


def test_other_keys_pass_through_and_sizes_may_be_named_either_way():
    given = {
        "wall_clock_breakdown": True,
        "zero_optimization": {
            "prefetch_bucket_size": 7,
            "stage3_max_live_parameters": 9,
            "round_robin_gradients": True,
        },
    }
    parallel = deepspeed(deepspeed=given)
    check_deepspeed_keys(parallel)
    found = settings(parallel)
    zero = found["zero_optimization"]
    assert found["wall_clock_breakdown"]
    assert zero["round_robin_gradients"]
    assert zero["stage"] == 3
    assert "prefetch_bucket_size" not in zero
    assert (zero["stage3_prefetch_bucket_size"], zero["stage3_max_live_parameters"]) == (7, 9)
    sizes = zero_sizes(parallel, 10**9, 10**8)
    assert (sizes.prefetch, sizes.live) == (7, 9)  # what the planner counts with


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gradient_clipping": 1}, r"parallel\.deepspeed\.gradient_clipping=1: follows from train\.clip"),
        ({"optimizer": {"type": "Adam"}}, r"deepspeed\.optimizer\.type=Adam: follows from train\.lr"),
        ({"zero_optimization": {"stage": 2}}, r"zero_optimization\.stage=2: follows from parallel\.zero"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r"offload_optimizer\.device=cpu: follows from parallel\.offload_optimizer",
        ),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled=True: follows from precision"),
        ({"zero_optimization": 3}, r"zero_optimization=3: must be a section"),
        ({"zero_optimization": {"sub_group": 3}}, r"zero_optimization\.sub_group=3: no key of DeepSpeed's"),
        (
            {"zero_optimization": {"reduce_bucket_size": -1}},
            r"reduce_bucket_size=-1: Input should be greater",
        ),
    ],
)
def test_keys_that_contradict_ours_or_deepspeed_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        check_deepspeed_keys(deepspeed(deepspeed=given))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"deepspeed": {"wall_clock_breakdown": True}},
            r"parallel\.deepspeed: has keys, but parallel\.engine",
        ),
        ({"gradients": "bf16"}, r"parallel\.gradients=bf16: the torch engine adds them up in float32"),
    ],
)
def test_the_torch_engine_takes_none_of_it(values, message):
    parallel = ParallelConfig.model_validate(values)

    def check() -> None:
        parallel.check(None)
        check_deepspeed_keys(parallel)

    with pytest.raises(UserError, match=message):
        check()


def test_gradients_of_bf16_runs_add_up_in_float32_unless_chosen_otherwise():
    """A gradient added to itself 24 times is exact in float32, and not in bfloat16."""
    norms = run_processes(norms_of_repeated_batches, 1, seconds=100)[0]
    for (zero, gradients), (once, repeated) in norms.items():
        error = abs(repeated - once) / once
        assert error < 1e-6 if gradients == "fp32" else 1e-4 < error < 0.1, (zero, gradients)


def norms_of_repeated_batches():
    """(ZeRO stage, dtype) → gradient norms of a sum over one and over 24 equal micro-batches."""
    cpu = torch.device("cpu")
    join_processes(cpu, group_of_one=True)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(2, 1, 8, 8, generator=generator), torch.tensor([0, 3]))
    found = {}
    for zero, gradients in ((1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
        norms = []
        for accumulate in (1, 24):
            parallel = deepspeed(zero, gradients=gradients)
            config = OptimizerConfig(clip=None)
            engine = build_engine(
                NET, config, parallel, join_mesh(parallel), cpu,
                precision="bf16", batch=2 * accumulate, accumulate=accumulate,
            )  # fmt: skip
            engine.backward = lambda loss, one=engine, n=accumulate: type(one).backward(one, loss * n)
            norms.append(train_step(engine, [batch] * accumulate).grad_norm.item() / accumulate)
            forget_mesh()
        found[zero, gradients] = tuple(norms)
    return found
