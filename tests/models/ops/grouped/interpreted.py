"""Runs cases of the grouped walk in Triton's interpreter, in a process of its own that is started with
TRITON_INTERPRET=1, which triton reads when it is imported. Prints the largest relative errors as JSON."""

import json

import torch

from models.offsets import OffsetGrid
from models.ops.naive import translution
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import streamed
from models.ops.walk.schedule import Schedule, whole_schedule

BATCH, WIDTH, HEADS, HEAD_DIM = 3, 16, 2, 8
CASES = {
    "2-D": {"grid": OffsetGrid((2, 3))},
    "3-D": {"grid": OffsetGrid((2, 1, 3))},
    "class token": {"grid": OffsetGrid((3, 2), class_token=True)},
    "causal": {"grid": OffsetGrid((6,), causal=True)},
    "class by class": {"grid": OffsetGrid((5,)), "workspace": 20_000},
    "sample by sample": {"grid": OffsetGrid((5,), class_token=True), "workspace": 1},
    "shared entries in several chunks": {"grid": OffsetGrid((7,), share="clip(1)"), "workspace": 20_000},
    "kept": {"grid": OffsetGrid((4,), class_token=True), "keep": True, "workspace": 1},
    **{f"relative {names}": {"grid": OffsetGrid((3,)), "relative": names} for names in ("q", "k", "v")},
    **{f"relative {names}": {"grid": OffsetGrid((3,)), "relative": names} for names in ("qk", "qv", "kv")},
}


def operands(grid, relative, head_dim=HEAD_DIM):
    """The recipe's operands, float32 sources [N, B, C] and banks [K, C, D]."""
    torch.manual_seed(0)
    inner = HEADS * head_dim
    sources, banks, places = [torch.randn(grid.num_tokens, BATCH, WIDTH)], [], []
    for name in "qkv":
        if name in relative:
            places.append(Operand(0, len(banks)))
            banks.append(torch.randn(grid.num_entries, WIDTH, inner) * WIDTH**-0.5)
        else:
            places.append(Operand(len(sources)))
            sources.append(torch.randn(grid.num_tokens, BATCH, inner))
    return places, sources, banks


def gradients(out, tensors):
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, tensors, torch.randn(out.shape).to(out.dtype))]


def walk(kernel, places, sources, banks, grid, keep=False, workspace=None, dtype=torch.float32):
    """The output and all gradients."""
    sources = [source.to(dtype).requires_grad_() for source in sources]
    banks = [bank.clone().requires_grad_() for bank in banks]
    (q, k, v), scale = places, HEAD_DIM**-0.5
    recipe = Recipe(((q, k),), (v,), HEADS, scale, keep, workspace, kernel=kernel)
    (out,) = streamed(recipe, whole_schedule(grid, in_bands=False), sources, banks)
    return gradients(out, [*sources, *banks])


def expected(places, sources, banks, grid):
    """The same by the equations, in float64; a projection that is not relative multiplies by one."""
    sources = [source.double().requires_grad_() for source in sources]
    banks = [bank.double().requires_grad_() for bank in banks]
    q, k, v = (
        per_operand(grid, sources[place.source], None if place.bank is None else banks[place.bank], side)
        for place, side in zip(places, "ijj", strict=True)
    )
    a = (q * k).sum(-1) * HEAD_DIM**-0.5
    weights = a.masked_fill((grid.table < 0)[:, :, None, None], -torch.inf).softmax(1)
    out = torch.einsum("ijbh,ijbhe->ibhe", weights, v).flatten(2)
    return gradients(out, [*sources, *banks])


def per_operand(grid, source, bank, side):
    """An operand of every pair, [N, N, B, H, E]."""
    if bank is None:
        rows = source[:, None] if side == "i" else source[None]
        return rows.expand(grid.num_tokens, grid.num_tokens, -1, -1).unflatten(-1, (HEADS, -1))
    each = torch.einsum(f"{side}bc,ijcd->ijbd", source, bank[grid.table.clamp_min(0)])
    return each.unflatten(-1, (HEADS, -1))


def relative_errors(got, wanted):
    return max(float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(got, wanted, strict=True))


def run_case(grid, relative="qkv", **options):
    places, sources, banks = operands(grid, relative)
    got = walk("grouped", places, sources, banks, grid, **options)
    return relative_errors(got, expected(places, sources, banks, grid))


def halves():
    """Two halves of the classes, each with its own entries, merged: against the whole."""
    from models.ops.grouped.walk import GroupedWalk

    grid = OffsetGrid((2, 3), class_token=True)
    places, sources, banks = operands(grid, "qkv")
    (q, k, v), scale = places, HEAD_DIM**-0.5
    recipe = Recipe(((q, k),), (v,), HEADS, scale)
    lse, (out,), _ = GroupedWalk.forward(recipe, whole_schedule(grid, in_bands=False), sources, banks)
    parts = [(grid.classes[:4], ()), (grid.classes[4:], grid.special_blocks)]
    partial = []
    for classes, specials in parts:
        used = sorted({block.entry for blocks in (*classes, specials) for block in blocks})
        schedule = Schedule(grid, classes, specials, {entry: n for n, entry in enumerate(used)})
        held = [bank[used] for bank in banks]
        partial.append(GroupedWalk.forward(recipe, schedule, sources, held)[:2])
    (lse_a, (out_a,)), (lse_b, (out_b,)) = partial
    merged = torch.logaddexp(lse_a, lse_b)
    both = out_a * (lse_a - merged).exp()[..., None] + out_b * (lse_b - merged).exp()[..., None]
    unseen = bool((lse_a[0] == -torch.inf).all() and (out_a[0] == 0).all())  # the class token's query
    return relative_errors([merged, both], [lse, out]), unseen


def bfloat16_errors():
    """Of the grouped walk and of the loop, which rounds at the same places."""
    grid = OffsetGrid((2, 3))
    places, sources, banks = operands(grid, "qkv")
    sources = [source.bfloat16().float() for source in sources]
    wanted = expected(places, sources, banks, grid)
    runs = (
        walk(kernel, places, sources, banks, grid, dtype=torch.bfloat16) for kernel in ("grouped", "loop")
    )
    return [relative_errors(run, wanted) for run in runs]


def repeats():
    grid = OffsetGrid((2, 3), class_token=True)
    first, second = (walk("grouped", *operands(grid, "qkv"), grid) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def kept_stays():
    """A second backward pass over what forward kept gives the same as the first."""
    grid = OffsetGrid((4,))
    (q, k, v), sources, banks = operands(grid, "qkv")
    inputs = [tensor.requires_grad_() for tensor in (*sources, *banks)]
    recipe = Recipe(((q, k),), (v,), HEADS, HEAD_DIM**-0.5, keep=True, kernel="grouped")
    (out,) = streamed(recipe, whole_schedule(grid, in_bands=False), sources, banks)
    first, second = (torch.autograd.grad(out.sum(), inputs, retain_graph=True) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def same_as_equations():
    """The loop above against models/ops/naive.py."""
    grid = OffsetGrid((2, 3))
    places, (x,), banks = operands(grid, "qkv")
    naive = translution(x.double().transpose(0, 1), *(b.double() for b in banks), grid.table, HEADS)
    return relative_errors([expected(places, [x], banks, grid)[0]], [naive.transpose(0, 1)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    merged, unseen = halves()
    results = {
        "cases": {name: run_case(**options) for name, options in CASES.items()},
        "halves": merged,
        "unseen": unseen,
        "bfloat16": bfloat16_errors(),
        "repeats": repeats(),
        "kept_stays": kept_stays(),
        "same_as_equations": same_as_equations(),
    }
    print(json.dumps(results))
