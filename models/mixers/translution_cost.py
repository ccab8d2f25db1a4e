"""What Translution costs, by formulas: FLOPs, bytes saved for backward, temporaries, partial softmaxes.

T below is the number of tokens of the batch, B·N. What autograd saves was read off mixers/translution.py
and ops/streamed.py, and compared with every allocation of small nets (tests/parallel/planner/test_plan.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

from torch import nn

from models.mixers.cost import Cost, Load
from models.offsets import OffsetGrid
from models.ops.recipe import Operand, Recipe, workspace_bytes
from models.ops.walk.schedule import CPU_CHUNK_BYTES, Schedule


class Translution(Protocol):
    """The part of models/mixers/translution.py that its cost depends on."""

    dim: int
    grid: OffsetGrid
    heads: int
    head_dim: int
    rank: int | None
    schedule: Schedule

    @property
    def recipe(self) -> Recipe: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class _Widths(NamedTuple):
    """The widths of a mixer's part of the heads.

    sources   C_s of each of the operator's sources
    operands  each operand of the operator, the side of the pair it is read from, and its width
    values    summed over the value segments
    narrow    summed over α-Translution's narrow sources, which serve all heads
    up        D of all heads, where α-Translution's values are brought back to it; else 0
    """

    inner: int
    heads: int
    sources: tuple[int, ...]
    operands: tuple[tuple[Operand, str, int], ...]
    values: int
    narrow: int
    up: int


def translution_cost(mixer: Translution, load: Load) -> Cost:
    """See `Mixer.cost`; exact in FLOPs but for element-wise work."""
    size, T = load.sizes, load.samples * mixer.grid.num_tokens
    here, whole = _widths(mixer, load.head_parts), _widths(mixer, 1)
    pairs = load.samples * _pair_flops(mixer, whole) // (load.head_parts * load.pair_parts)
    projections = [p for name, p in mixer.named_parameters() if name.endswith(".weight")]
    dense = sum(2 * T * p.numel() for p in projections) // load.head_parts
    gradients = tuple(T * width * size.statistics for width in here.sources)
    work = T * (here.values * size.product + here.heads * 4) + sum(gradients)
    if load.pair_parts > 1 and len(gradients) > 1:  # summed over the parts in one piece
        work += sum(gradients)
    return Cost(
        forward=pairs + dense,
        recomputed=0 if mixer.recipe.keep else pairs,  # q, k and v of every pair
        saved=_saved(mixer, here, load, T),
        work=work + _temporaries(mixer, here, load),
        head_gradients=T * mixer.dim * size.residual + T * here.narrow * size.product,
        partials=T * (2 * here.heads + here.values) * size.statistics,
        source_gradients=gradients,
    )


def _widths(mixer: Translution, head_parts: int) -> _Widths:
    heads, inner = mixer.heads // head_parts, mixer.heads * mixer.head_dim // head_parts
    shared = tuple(inner for name in "qkv" if hasattr(mixer, name))
    low = mixer.rank or 0
    narrow = tuple(mixer.heads * low for name in "qkv" if hasattr(mixer, f"{name}_down"))
    up = hasattr(mixer, "v_up")
    operands: list[tuple[Operand, str, int]] = []
    for segment, (query, key) in enumerate(mixer.recipe.logits):
        width = heads * low if segment else inner
        operands += [(query, "query", width), (key, "key", width)]
    operands += [
        (value, "key", heads * low if segment else inner) for segment, value in enumerate(mixer.recipe.values)
    ]
    return _Widths(
        inner=inner,
        heads=heads,
        sources=(mixer.dim, *shared) if mixer.rank is None else (*shared, *narrow),
        operands=tuple(operands),
        values=inner + up * heads * low,
        narrow=sum(narrow),
        up=inner if up else 0,
    )


def _pair_flops(mixer: Translution, widths: _Widths) -> int:
    """FLOPs forward of the pass over all pairs of one sample: products with the bank, logits, outputs."""
    query_rows, key_rows = _rows(mixer.grid)
    total = 0
    for operand, side, width in widths.operands:
        if operand.bank is not None:
            rows = query_rows if side == "query" else key_rows
            total += 2 * rows * widths.sources[operand.source] * width
        total += mixer.grid.num_pairs * width  # half of ⟨q, k⟩, or of a·v
    values = sum(width for *_, width in widths.operands[-len(mixer.recipe.values) :])
    return total + mixer.grid.num_pairs * values


@lru_cache(maxsize=64)
def _rows(grid: OffsetGrid) -> tuple[int, int]:
    """Rows that banks multiply on the query side and on the key side."""
    blocks = [block for blocks in (*grid.classes, grid.special_blocks) for block in blocks]
    query_rows, key_rows = zip(*(block.products for block in blocks), strict=True)
    return sum(query_rows), sum(key_rows)


def _saved(mixer: Translution, here: _Widths, load: Load, T: int) -> int:
    size = load.sizes
    other = sum(here.sources) - (mixer.dim if mixer.rank is None else 0)
    saved = T * mixer.dim * size.residual + T * other * size.product
    saved += T * (here.heads + here.values) * size.statistics
    saved += T * here.up * size.product
    if size.product != size.statistics:
        saved += T * here.values * size.product
    if mixer.recipe.keep:
        each = sum(width for *_, width in here.operands) * size.product
        saved += mixer.schedule.pairs // load.pair_parts * load.samples * each
    if size.product != size.residual:  # autocast saves its own copy of x
        saved += T * mixer.dim * size.product
    return saved


def _temporaries(mixer: Translution, here: _Widths, load: Load) -> int:
    """Bytes of the largest chunk of pairs in backward; ops/streamed.py cuts the chunks."""
    size, schedule = load.sizes, mixer.schedule
    workspace = workspace_bytes(mixer.recipe.workspace, "cpu" if load.cpu else "cuda")
    read = {(operand.source, side) for operand, side, _ in here.operands}
    summed = 0  # products that are summed, in the statistics' dtype
    if size.product != size.statistics:
        summed = 3 * max(width for *_, width in here.operands) * size.statistics
    pair_bytes = sum(here.sources[source] for source, _ in read) * (size.product + size.statistics)
    pair_bytes += 2 * sum(width for *_, width in here.operands) * size.product + summed
    step = schedule.batch_slice(load.samples, pair_bytes, workspace)
    if load.cpu:
        workspace = min(workspace, CPU_CHUNK_BYTES)
    class_pairs, classes = mixer.grid.grid_tokens, -(-len(schedule.classes) // load.pair_parts)
    fitting = min(workspace // (class_pairs * step * pair_bytes), classes)
    pairs = fitting * class_pairs or schedule.largest_block
    multiplied = {(o.source, side) for o, side, _ in here.operands if o.bank is not None}
    copied = pairs if fitting else schedule.largest_copy(step == load.samples)
    rows = copied * sum(here.sources[source] for source, _ in multiplied) * (size.product + size.statistics)
    numbers = sum(width for *_, width in here.operands)  # keys and values, or their gradients; ∂q
    numbers += sum(width for o, side, width in here.operands if side == "query" and o.bank is not None)
    if fitting:  # rows of the output's gradient, and of sources that no bank multiplies
        numbers += here.values + sum(here.sources[source] for source, _ in read - multiplied)
    return step * (rows + pairs * (numbers * size.product + summed))
