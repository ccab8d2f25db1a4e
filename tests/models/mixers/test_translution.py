"""Every variant of the layer equals its equations, written out in full here or in ops/naive.py."""

import pytest
import torch
import torch.nn.functional as F

from models import OffsetGrid, Translution
from models.mixers.translution import RELATIVE
from models.ops import naive
from models.ops.walk import schedule
from models.ops.walk.schedule import Schedule
from models.positions.rope import Rope, RopePosition

GRIDS = [
    OffsetGrid((7,)),
    OffsetGrid((7,), class_token=True),
    OffsetGrid((7,), causal=True),
    OffsetGrid((6,), causal=True),
    OffsetGrid((3, 4)),
    OffsetGrid((3, 4), class_token=True),
    OffsetGrid((5, 5)),
    OffsetGrid((5, 5), class_token=True),
    OffsetGrid((2, 3, 4)),
    OffsetGrid((2, 3, 4), class_token=True),
]
DIM, HEADS, HEAD_DIM, BATCH = 6, 2, 4, 2


def weight(layer, letter):
    """The bank, or the one matrix [in, out], of a projection."""
    return layer.get_parameter(f"{letter}_bank") if letter in layer.relative else matrix(layer, letter)


def matrix(layer, name):
    return layer.get_submodule(name).weight.t()


def naive_full(layer, x, entry):
    return layer.out(naive.translution(x, *(weight(layer, n) for n in "qkv"), entry, layer.heads))


def naive_alpha(layer, x, entry):
    """α-Translution by its equations, every pair written out."""
    H, N = layer.heads, x.shape[1]
    dense = [(x @ matrix(layer, n)).unflatten(-1, (H, -1)) for n in "qkv"]
    if layer.rotation is not None:
        dense[:2] = (layer.rotation(t.transpose(0, 1)).transpose(0, 1) for t in dense[:2])
    a = torch.einsum("bihe,bjhe->bijh", dense[0], dense[1])
    pairs = {}
    for letter, token in zip("qkv", "ijj", strict=True):
        if not hasattr(layer, f"{letter}_down"):
            continue
        down = x @ matrix(layer, f"{letter}_down")
        W = layer.get_parameter(f"{letter}_bank") if letter in layer.relative else None
        W = torch.eye(down.shape[-1], dtype=x.dtype) if W is None else W
        pairs[letter] = naive.per_pair(down, W, entry, token).unflatten(-1, (H, -1))
    if "q" in pairs:
        a = (a + (pairs["q"] * pairs["k"]).sum(-1)) / 2
    alpha = naive.softmax_weights(a / layer.head_dim**0.5, entry)
    out = torch.einsum("bijh,bjhe->bihe", alpha, dense[2]).flatten(2)
    if "v" in pairs:
        narrow = torch.einsum("bijh,bijhe->bihe", alpha, pairs["v"]).flatten(2)
        out = (out + narrow @ matrix(layer, "v_up")) / 2
    assert alpha.shape == (len(x), N, N, H)
    return layer.out(out)


def assert_equal_with_gradients(layer, reference, tolerance=1e-10):
    """`layer` equals reference(layer, x, entry): values and all gradients."""
    torch.manual_seed(0)
    layer = layer.double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(BATCH, layer.grid.num_tokens, layer.dim, dtype=torch.double, requires_grad=True)
    got, expected = layer(x), reference(layer, x, layer.grid.table)
    grad_out = torch.randn_like(got)
    inputs = {"x": x, **dict(layer.named_parameters())}
    got_grads = torch.autograd.grad(got, list(inputs.values()), grad_out)
    expected_grads = torch.autograd.grad(expected, list(inputs.values()), grad_out)
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    for name, a, b in zip(inputs, got_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda m, name=name: f"∂{name}: {m}")


@pytest.mark.parametrize("workspace", [1, 4000, 64 << 20], ids=["blocks", "few-classes", "all-classes"])
@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_full_translution_equals_naive(grid, relative, workspace):
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, relative, workspace=workspace)
    assert_equal_with_gradients(layer, naive_full)


@pytest.mark.parametrize("workspace", [1, 4000, 64 << 20], ids=["a row of queries", "some", "all"])
@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("grid", [GRIDS[1], GRIDS[2], GRIDS[4], GRIDS[5], GRIDS[9]], ids=str)
def test_alpha_translution_equals_naive(grid, relative, workspace):
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, relative, rank=3, workspace=workspace)
    assert_equal_with_gradients(layer, naive_alpha)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("relative", ["qkv", "v"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_of_a_whole_batch_equal_naive(grid, relative, rank, monkeypatch):
    """As on a CPU whose caches hold no class: strips lie in one piece, or are copied once for many blocks."""
    monkeypatch.setattr(schedule, "CPU_CHUNK_BYTES", 1)
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, relative, rank=rank)
    assert_equal_with_gradients(layer, naive_full if rank is None else naive_alpha)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("grid", [GRIDS[2], GRIDS[4], GRIDS[5]], ids=str)
def test_rope_rotates_the_shared_queries_and_keys(grid, rank):
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, "v", rank=rank, position=RopePosition())

    def rotated(layer, x, entry):
        q, k = (
            layer.rotation((x @ matrix(layer, n)).transpose(0, 1).unflatten(-1, (HEADS, -1))) for n in "qk"
        )
        a = torch.einsum("ibhe,jbhe->bijh", q, k) / layer.head_dim**0.5
        v = naive.per_pair(x, layer.v_bank, entry, "j").unflatten(-1, (HEADS, -1))
        out = torch.einsum("bijh,bijhe->bihe", naive.softmax_weights(a, entry), v)
        return layer.out(out.flatten(2))

    assert_equal_with_gradients(layer, rotated if rank is None else naive_alpha)


def test_rope_keeps_far_positions_apart_in_bfloat16():
    """Whose numbers are two apart from 256 on: an angle has to be turned into cosine and sine before."""
    rope = Rope(OffsetGrid((1024,), causal=True), 8)
    x = torch.ones(1024, 1, 1, 8)
    torch.testing.assert_close(rope(x.bfloat16()).float(), rope(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("workspace", [1, 64 << 20], ids=["blocks", "classes"])
@pytest.mark.parametrize("rank", [None, 3])
def test_keeping_equals_recomputing(rank, workspace):
    torch.manual_seed(0)
    grid = OffsetGrid((3, 4), class_token=True)
    layers = [
        Translution(DIM, grid, HEADS, HEAD_DIM, rank=rank, memory=memory, workspace=workspace)
        for memory in ("recompute", "keep")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(BATCH, grid.num_tokens, DIM)
    for layer in layers:
        layer(x).square().sum().backward()
    for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_one_matrix_for_all_offsets(relative, causal):
    torch.manual_seed(0)
    grid = OffsetGrid((9,), causal=causal) if causal else OffsetGrid((3, 3), class_token=True)
    layer = Translution(DIM, grid, HEADS, HEAD_DIM, relative).double()
    x = torch.randn(BATCH, grid.num_tokens, DIM, dtype=torch.double)
    shared = torch.randn(3, DIM, HEADS * HEAD_DIM, dtype=torch.double)
    with torch.no_grad():
        for letter, one in zip("qkv", shared, strict=True):
            weight(layer, letter).copy_(one)
    q, k, v = ((x @ one).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in shared)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(layer(x), layer.out(expected.transpose(1, 2).flatten(2)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("class_token", [False, True])
def test_clip_0_of_a_full_bank_is_self_attention(class_token):
    torch.manual_seed(0)
    layer = Translution(DIM, OffsetGrid((3, 4), False, class_token, "clip(0)"), HEADS, HEAD_DIM).double()
    assert layer.q_bank.shape == (1, DIM, HEADS * HEAD_DIM)
    x = torch.randn(BATCH, layer.grid.num_tokens, DIM, dtype=torch.double)
    q, k, v = ((x @ weight(layer, n)[0]).unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in "qkv")
    expected = layer.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_convolution_is_translution_with_uniform_weights_in_the_window():
    """Logits that are equal inside the 3×3 window and −200 outside it; interior pixels see 9 keys."""
    torch.manual_seed(0)
    grid = OffsetGrid((6, 5))
    layer = Translution(4, grid, heads=1, head_dim=3).double()
    kernel = torch.randn(3, 4, 3, 3, dtype=torch.double)  # [out, in, rows, columns]
    window = {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    with torch.no_grad():
        layer.q_bank.zero_()
        layer.k_bank.zero_()
        for dy in range(-5, 6):
            for dx in range(-4, 5):
                entry = grid.entry((dy, dx))
                if (dy, dx) in window:  # the key lies at −δ from the query
                    layer.v_bank[entry] = kernel[:, :, 1 - dy, 1 - dx].t()
                else:
                    layer.q_bank[entry, 0, 0] = -200 * 3**0.5
        layer.k_bank[:, 0, 0] = 1
        layer.out.weight.copy_(torch.eye(4, 3))
        layer.out.bias.zero_()
    x = torch.randn(BATCH, 30, 4, dtype=torch.double)
    x[..., 0] = 1  # the channel that queries and keys read
    image = x.transpose(1, 2).unflatten(2, (6, 5))
    got = layer(x)[..., :3].transpose(1, 2).unflatten(2, (6, 5))
    expected = F.conv2d(image, kernel) / 9
    torch.testing.assert_close(got[:, :, 1:-1, 1:-1], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [None, 3])
def test_bfloat16_autocast_stays_near_float32_and_keeps_float32_gradients(rank):
    torch.manual_seed(0)
    layer = Translution(32, OffsetGrid((4, 4), class_token=True), 2, 16, rank=rank)
    x = torch.randn(4, 17, 32, requires_grad=True)
    exact = layer(x)
    exact_grads = torch.autograd.grad(exact.square().mean(), [x, *layer.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
        loss = rounded.float().square().mean()
    assert rounded.dtype == torch.bfloat16
    grads = torch.autograd.grad(loss, [x, *layer.parameters()])
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    for a, b in zip(grads, exact_grads, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.05 * b.norm()


def test_large_logits_do_not_overflow():
    layer = Translution(DIM, OffsetGrid((8,), causal=True), HEADS, HEAD_DIM, workspace=1 << 20)
    x = 1e3 * torch.randn(BATCH, 8, DIM)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("rank", [None, 3])
def test_nothing_of_size_n_squared_is_saved_for_backward(rank):
    """Saved numbers grow with N like the tokens, and the bank, do."""

    def saved(n):
        grid = OffsetGrid((n,))
        layer = Translution(DIM, grid, HEADS, HEAD_DIM, rank=rank)
        banks = {p.data_ptr() for p in layer.parameters()}
        sizes = []
        pack = lambda t: sizes.append(0 if t.data_ptr() in banks else t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(torch.randn(BATCH, n, DIM))
        return sum(sizes)

    assert saved(64) <= 2 * saved(32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relative": "x"}, "relative 'x': one of q, k, v"),
        ({"rank": 0}, "rank 0"),
        ({"position": RopePosition()}, "position rope with relative 'qkv'"),
        ({"relative": "v", "position": RopePosition(), "head_dim": 6}, "head_dim 6: rope on 2 dimensions"),
        ({"init": "zeros"}, "init 'zeros'"),
        ({"memory": "all"}, "memory 'all'"),
    ],
)
def test_variants_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Translution(DIM, OffsetGrid((3, 3)), HEADS, **arguments)


@pytest.mark.parametrize("shape", [(2, 8, 6), (2, 9, 5), (9, 6)])
def test_x_of_the_wrong_shape_is_refused(shape):
    layer = Translution(DIM, OffsetGrid((3, 3)), HEADS, HEAD_DIM)
    with pytest.raises(ValueError, match=r"\[batch, 9, 6\] is needed"):
        layer(torch.randn(shape))


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("share", ["none", "log"])
def test_bfloat16_errs_by_rounding_only(share, rank):
    """Logits and sums are float32: the error is that of operands rounded to 8 bits."""
    torch.manual_seed(0)
    layer = Translution(32, OffsetGrid((6, 5), class_token=True, share=share), 2, 16, rank=rank)
    layer.schedule = (
        Schedule(layer.grid, [(b,) for b in layer.grid.bands]) if share == "log" else layer.schedule
    )
    x = torch.randn(3, 31, 32, requires_grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
        results.append([y.detach(), *grads])
    for exact, rounded in zip(*results, strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()
