"""Runs α-Translution's kernels in Triton's interpreter, and compares them with the definition.

Run as a script, for the interpreter is chosen before triton is imported: takes the cases as a JSON list on
standard input and prints a JSON line for each, the errors relative to `naive` in float64.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from models.dealing import deal
from models.offsets import OffsetGrid
from models.ops import naive
from models.ops.delta.operator import row_dots
from models.ops.fused.alpha import dense, relative, tables
from models.ops.fused.alpha.walk import AlphaWalk
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import PairWalk
from models.ops.walk.schedule import Schedule, whole_schedule

OPERATORS = {
    module: [name for name in vars(module) if name.startswith("alpha_")] for module in (dense, relative)
}


def recipe_of(case: dict[str, Any]) -> Recipe:
    """As `Translution` builds it."""
    relative_, heads = case["relative"], case["heads"]
    bank = {name: index for index, name in enumerate(relative_)}
    narrow = {name: Operand(3 + i, bank.get(name)) for i, name in enumerate(narrow_names(relative_))}
    logits, values, scale = ((Operand(0), Operand(1)),), (Operand(2),), case["width"] ** -0.5
    if "q" in narrow:
        logits, scale = (*logits, (narrow["q"], narrow["k"])), scale / 2
    if "v" in narrow:
        values = (*values, narrow["v"])
    return Recipe(logits, values, heads, scale, **case.get("options", {}))


def narrow_names(relative_: str) -> str:
    return ("qk" if {"q", "k"} & set(relative_) else "") + ("v" if "v" in relative_ else "")


def schedules_of(grid: OffsetGrid, shards: int, bands: bool) -> list[Schedule]:
    """The whole schedule, or shards of the classes; the special blocks are the first one's. With `bands`
    those of offset parallelism over bands, unrolled to single offsets."""
    if bands:
        whole = whole_schedule(grid, row_work=1e6)
        shares = deal(whole, shards)
        schedules = [share.schedule(whole).by_offset for share in shares]
        for share, schedule in zip(shares, schedules, strict=True):
            schedule.held = torch.tensor(share.entries)  # pyright: ignore[reportAttributeAccessIssue]
        return schedules
    if shards == 1:
        return [whole_schedule(grid, in_bands=False)]
    schedules = []
    for shard in range(shards):
        classes = grid.classes[shard::shards]
        specials = grid.special_blocks if shard == 0 else ()
        blocks = [block for blocks in (*classes, specials) for block in blocks]
        local = {entry: index for index, entry in enumerate(sorted({block.entry for block in blocks}))}
        schedules.append(Schedule(grid, classes, specials, local))
        schedules[-1].held = torch.tensor(sorted(local))  # pyright: ignore[reportAttributeAccessIssue]
    return schedules


def run(
    walk: Any,
    recipe: Recipe,
    schedules: list[Schedule],
    sources: list[Tensor],
    banks: list[Tensor],
    seed: int,
) -> list[Tensor]:
    """outs, ∂sources and ∂banks; shards are merged as ranks merge them."""
    held = [getattr(schedule, "held", slice(None)) for schedule in schedules]
    forward = [
        walk.forward(recipe, schedule, sources, [bank[entries] for bank in banks])
        for schedule, entries in zip(schedules, held, strict=True)
    ]
    lse = torch.stack([part[0] for part in forward]).logsumexp(0)
    outs = [
        sum(out * (part[0] - lse).exp().unsqueeze(-1) for part, out in zip(forward, segment, strict=True))
        for segment in zip(*(part[1] for part in forward), strict=True)
    ]
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(out.shape, generator=generator).to(sources[0].dtype) for out in outs]
    delta = row_dots(grads, list(outs))
    grad_sources, grad_banks = None, [torch.zeros_like(bank) for bank in banks]
    for schedule, entries, part in zip(schedules, held, forward, strict=True):
        some = [bank[entries] for bank in banks]
        got, got_banks = walk.backward(recipe, schedule, sources, some, part[2], lse, delta, grads)
        grad_sources = (
            got if grad_sources is None else [a + b for a, b in zip(grad_sources, got, strict=True)]
        )
        for total, grad in zip(grad_banks, got_banks, strict=True):
            total[entries] += grad
    return [*(out.flatten(2) for out in outs), *(grad_sources or []), *grad_banks]


def definition(
    case: dict[str, Any], recipe: Recipe, grid: OffsetGrid, sources: list[Tensor], banks: list[Tensor]
) -> list[Tensor]:
    """The same in float64 from `naive`."""
    leaves = [tensor.double().requires_grad_() for tensor in (*sources, *banks)]
    rows, matrices = [leaf.transpose(0, 1) for leaf in leaves[: len(sources)]], leaves[len(sources) :]
    by_name = dict(zip(narrow_names(case["relative"]), rows[3:], strict=True))
    by_bank = dict(zip(case["relative"], matrices, strict=True))
    q, k, v = (by_name.get(name) for name in "qkv")
    bank_q, bank_k, bank_v = (by_bank.get(name) for name in "qkv")
    outs = naive.alpha_translution(
        (rows[0], rows[1], rows[2]),
        (q, k, v),
        (bank_q, bank_k, bank_v),
        grid.table,
        recipe.heads,
        recipe.scale,
    )
    outs = [out.transpose(0, 1) for out in outs]
    generator = torch.Generator().manual_seed(case["seed"])
    grads = []
    for out in outs:
        shape = (*out.shape[:2], recipe.heads, out.shape[2] // recipe.heads)
        grads.append(torch.randn(shape, generator=generator).to(sources[0].dtype).double().flatten(2))
    return [*outs, *torch.autograd.grad(outs, leaves, grads)]


def errors(case: dict[str, Any]) -> dict[str, Any]:
    """Relative errors of outs, ∂sources and ∂banks: of the kernels, and of `PairWalk` in the same dtype."""
    torch.manual_seed(case["seed"])
    grid = OffsetGrid(tuple(case["shape"]), **case.get("grid", {}))
    dtype, recipe, B = getattr(torch, case.get("dtype", "float32")), recipe_of(case), case["batch"]
    wide, narrow = case["heads"] * case["width"], case["heads"] * case["rank"]
    widths = [wide] * 3 + [narrow] * len(narrow_names(case["relative"]))
    joined = torch.randn(grid.num_tokens, B, sum(widths)).to(dtype)  # views of it, as the mixer gives them
    sources = list(joined.split(widths, -1))
    banks = [torch.randn(grid.num_entries, narrow, narrow) * narrow**-0.5 for _ in case["relative"]]
    schedules = schedules_of(grid, case.get("shards", 1), case.get("bands", False))
    tables.MULTIPROCESSORS = case.get("processors", 132)
    expected = definition(case, recipe, grid, sources, banks)
    got = run(AlphaWalk, recipe, schedules, sources, banks, case["seed"])
    result: dict[str, Any] = {"kernels": list(map(_error, got, expected))}
    if dtype == torch.bfloat16:
        pairs = run(PairWalk, recipe, schedules, sources, banks, case["seed"])
        activations = len(pairs) - len(banks)  # rounded, as `streamed` gives them; banks' gradients are not
        pairs = [t.to(dtype) if i < activations else t for i, t in enumerate(pairs)]
        result["reference"] = list(map(_error, pairs, expected))
    if case.get("again"):
        again = run(AlphaWalk, recipe, schedules, sources, banks, case["seed"])
        result["same"] = all(map(torch.equal, got, again))
    if case.get("opcheck"):
        result["checked"] = check_operators(recipe, schedules[0], sources, banks)
    return result


def check_operators(
    recipe: Recipe, schedule: Schedule, sources: list[Tensor], banks: list[Tensor]
) -> list[str]:
    """Checks each operator's schema and fake implementation on the arguments of a pass; gives their names."""
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    originals = {name: getattr(module, name) for module, names in OPERATORS.items() for name in names}

    def recording(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            calls.setdefault(name, (originals[name], arguments))
            return originals[name](*arguments)

        return call

    for module, names in OPERATORS.items():
        for name in names:
            setattr(module, name, recording(name))
    run(AlphaWalk, recipe, [schedule], sources, banks, 0)
    for operator, arguments in calls.values():
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    for module, names in OPERATORS.items():
        for name in names:
            setattr(module, name, originals[name])
    return sorted(calls)


def _error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in json.load(sys.stdin):
        print(json.dumps(errors(line)), flush=True)
