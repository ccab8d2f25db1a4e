"""The operator's passes and the other products of a real step."""

import torch

from launch.bench.step.parts import Call, parts_of_step
from models.ops import streamed
from parallel.rehearsal.recorder import product_flops
from tests.launch.rehearse.nets import GPT, config
from trainer.setup import build_engine
from trainer.train import train_step

B, N, C, D, HIDDEN, V, LAYERS = 4, 12, 16, 16, 32, 50, 2


def test_the_parts_are_every_pass_of_the_operator_and_every_other_product():
    """Two thirds of the dense FLOPs are backward's; those inside the operator are not among them."""
    engine, choose = build_engine(config(GPT, batch=B)), streamed.choose_walk
    ids = torch.zeros(B, N, dtype=torch.long)
    passes: list[Call] = []
    flops, others = 0, set()

    def operator(call: Call) -> object:
        passes.append(call)
        return call.run()

    def other(call: Call, out: object, product: bool) -> None:
        nonlocal flops
        flops += product_flops(call.function, call.args, call.kwargs, out)
        if not product:
            others.add(call.function.overloadpacket.__name__)

    with parts_of_step(operator, other):
        train_step(engine, [(ids, ids)])
    assert [call.function.__name__ for call in passes] == ["forward"] * LAYERS + ["backward"] * LAYERS
    dense = LAYERS * (D * C + 2 * C * HIDDEN) + C * V
    assert flops == 3 * 2 * B * N * dense
    assert {"_fused_adamw_", "gelu"} <= others
    for first, second in zip(passes[0].run()[1], passes[0].run()[1], strict=True):
        assert first.equal(second)
    assert streamed.choose_walk is choose
