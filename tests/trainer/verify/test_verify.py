"""Every mesh and engine trains to the numbers of one process (loss, clipped norm, updated weights)."""

import pytest

import parallel.engine.gradients
from models import GPTConfig, ViTConfig
from parallel.mesh import ParallelConfig
from parallel.spawn import run_processes
from trainer.verify.verify import compare, layouts, verify

FULL = {"kind": "translution", "heads": 2, "head_dim": 4}
MIXERS = {
    "full": FULL,
    "alpha": FULL | {"rank": 3},
    "shared": FULL | {"relative": "kv", "share": "clip(1)"},
    "attention": {"kind": "attention", "heads": 2, "head_dim": 4},
}


def net(kind, mixer, **changes):
    if kind == "gpt":
        shape = {"vocabulary": 11, "tokens": 15, "width": 8, "depth": 2, "mlp": 16}
        return GPTConfig.model_validate(shape | {"mixer": MIXERS[mixer]} | changes)
    shape = {"image_size": 12, "patch_size": 4, "channels": 1, "classes": 5}
    shape |= {"width": 8, "depth": 2, "mlp": 16}
    return ViTConfig.model_validate(shape | {"mixer": MIXERS[mixer]} | changes)


def assert_agrees(model, parallels, processes, seconds=110):
    rows = verify(model, parallels, processes, seconds=seconds)
    assert [row for row in rows if not row.agrees] == []
    assert len(rows) == len(parallels)
    return rows


def layout(offset=1, tensor=1, zero=None, activations="none"):
    engine = {"engine": "torch"} if zero is None else {"engine": "deepspeed", "zero": zero}
    values = {"offset": offset, "tensor": tensor, "activations": activations}
    return ParallelConfig.model_validate(values | engine)


def test_one_process_under_deepspeed():
    assert_agrees(net("vit", "full"), [layout(zero=zero) for zero in (0, 1, 2, 3)], 1)


@pytest.mark.parametrize(("kind", "mixer"), [("vit", "full"), ("gpt", "alpha")])
def test_two_processes(kind, mixer):
    parallels = [
        layout(),
        layout(zero=1),
        layout(zero=3, activations="block"),
        layout(offset=2),
        layout(offset=2, zero=2, activations="operator"),
        layout(offset=2, zero=3),
        layout(tensor=2, activations="block_cpu"),
        layout(tensor=2, zero=3),
    ]
    rows = assert_agrees(net(kind, mixer), parallels, 2)
    whole, halved = rows[0].bank_bytes, rows[3].bank_bytes
    assert halved < 0.6 * whole


@pytest.mark.parametrize(
    ("kind", "mixer"), [pytest.param("gpt", "full", marks=pytest.mark.soak), ("vit", "alpha")]
)
def test_four_processes(kind, mixer):
    parallels = [
        layout(offset=2, zero=3),
        layout(offset=2, tensor=2),
        layout(offset=2, tensor=2, zero=0, activations="block"),
        layout(tensor=2, zero=3),
        layout(offset=4, zero=1),
    ]
    assert_agrees(net(kind, mixer), parallels, 4)


@pytest.mark.parametrize(
    ("kind", "mixer"),
    [
        ("vit", "shared"),
        ("gpt", "attention"),
        pytest.param("gpt", "shared", marks=pytest.mark.soak),
        pytest.param("vit", "attention", marks=pytest.mark.soak),
    ],
)
def test_other_mixers_on_two_and_four(kind, mixer):
    assert_agrees(net(kind, mixer), [layout(offset=2), layout(tensor=2, zero=3)], 2)


@pytest.mark.soak
def test_tied_embeddings_and_a_vocabulary_that_does_not_divide():
    """Five words in runs of two: one rank holds one and padding, one nothing but padding."""
    model = net("gpt", "full", tie_embeddings=True, vocabulary=5)
    assert_agrees(model, [layout(offset=4), layout(tensor=2, zero=3), layout(offset=2, tensor=2, zero=3)], 4)


@pytest.mark.soak
def test_eight_processes_with_a_class_each():
    """Offset 8 on a grid of nine classes and a class token; every rank holds an eighth of the bank."""
    rows = assert_agrees(net("vit", "full"), [layout(offset=8), layout(offset=4, tensor=2, zero=3)], 8)
    assert rows[0].bank_bytes < 1.5 * rows[1].bank_bytes * 4 * 2 / 8


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", ["vit", "gpt"])
def test_every_layout(kind, mixer, processes):
    assert_agrees(net(kind, mixer), layouts(processes), processes, seconds=1700)


def test_a_wrong_norm_would_be_seen():
    """Counting every parameter on every rank, as an unmarked one would be, changes clipped weights."""
    rows = run_processes(compare_with_wrong_norm, 2, net("vit", "full"), [layout(offset=2)], seconds=60)[0]
    assert not rows[0].agrees


def compare_with_wrong_norm(model, parallels):
    parallel.engine.gradients.counted = lambda parameter, mesh: True
    return compare(model, parallels)
