"""The torch engine: accumulation, clipping and state."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import TorchEngine
from trainer.train import train_step

Samples = tuple[Tensor, Tensor]


class Net(nn.Sequential):
    """Like our nets: logits, or with targets the mean loss."""

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = super().forward(inputs)
        return logits if targets is None else F.cross_entropy(logits, targets)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).double()


def data(count: int = 12) -> Samples:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (count,), generator=generator)


def engine(accumulate: int = 1, **settings: object) -> TorchEngine:
    config = OptimizerConfig.model_validate({"steps": 20, "lr": 0.1} | settings)
    return TorchEngine(net(), config, torch.device("cpu"), accumulate=accumulate)


def weights(of: TorchEngine) -> Tensor:
    return nn.utils.parameters_to_vector(of.model.parameters()).detach()


def test_accumulated_micro_batches_equal_one_large_batch():
    whole, parts = engine(), engine(accumulate=3)
    inputs, targets = data()
    for _ in range(3):
        one = train_step(whole, [(inputs, targets)])
        pieces = zip(inputs.split(4), targets.split(4), strict=True)
        three = train_step(parts, pieces)
        assert three.loss.item() == pytest.approx(one.loss.item(), rel=1e-6)
        assert three.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-10)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-9, atol=1e-12)


def test_a_step_equals_torch_adamw_on_the_clipped_gradient():
    ours = engine(clip=0.01, weight_decay=0.3)
    model = net()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    result = train_step(ours, [data()])
    model(*data()).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    assert norm.item() > 0.01  # clipping is active
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-12)
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(weights(ours), expected, rtol=1e-10, atol=1e-12)


def test_clip_null_leaves_the_gradient_alone():
    unclipped, generous = engine(clip=None), engine(clip=1e9)
    for one in (unclipped, generous):
        train_step(one, [data()])
    assert torch.equal(weights(unclipped), weights(generous))


def copy_state(before: TorchEngine, after: TorchEngine) -> None:
    for kind, tensors in after.state().tensors.items():
        for name, tensor in tensors.items():
            tensor.copy_(before.state().tensors[kind][name])
    after.restored(before.steps_done)


def test_a_restored_engine_continues_exactly():
    uninterrupted, before, after = engine(), engine(), engine()
    for _ in range(4):
        train_step(uninterrupted, [data()])
    for _ in range(2):
        train_step(before, [data()])
    copy_state(before, after)
    for _ in range(2):
        train_step(after, [data()])
    assert after.steps_done == 4
    assert torch.equal(weights(after), weights(uninterrupted))


def test_a_resumed_run_takes_the_settings_of_its_config_not_of_the_checkpoint():
    after = engine(weight_decay=0.7)
    copy_state(engine(weight_decay=0.1), after)
    assert [group["weight_decay"] for group in after.optimizer.param_groups] == [0.7, 0]


def test_evaluation_is_without_gradients_and_dropout():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
    one = TorchEngine(model, OptimizerConfig(), torch.device("cpu"))
    outputs = [one.evaluate(torch.ones(3, 4), lambda net, batch: net(batch)) for _ in range(2)]
    assert torch.equal(*outputs)
    assert not outputs[0].requires_grad


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights():
    seen = []

    class Recorded(nn.Linear):
        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            output = super().forward(inputs)
            seen.append((output.dtype, targets.dtype))
            return (output.float() - targets).square().mean()

    one = TorchEngine(Recorded(4, 2), OptimizerConfig(), torch.device("cpu"), "bf16")
    train_step(one, [(torch.ones(3, 4), torch.ones(3, 2))])
    assert seen == [(torch.bfloat16, torch.float32)]
    assert one.model.weight.dtype == torch.float32


def test_a_step_of_too_few_micro_batches_is_an_error():
    with pytest.raises(AssertionError):
        train_step(engine(accumulate=3), [data(), data()])
