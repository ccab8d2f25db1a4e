"""What Translution costs, by formulas: FLOPs, bytes saved for backward, temporaries, partial softmaxes.

T below is the number of tokens of the batch, B·N. What autograd saves was read off mixers/translution.py
and ops/streamed.py, and compared with every allocation of small nets (tests/parallel/planner/test_plan.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import nn

from models.dealing import deal
from models.mixers.cost import Cost, Load, Sizes
from models.offsets import OffsetGrid
from models.ops.dense.parts import BUFFERS, Parts, cut_of, has_dense_part, parts_of
from models.ops.recipe import Importance, Operand, Recipe, workspace_bytes
from models.ops.walk.schedule import CPU_CHUNK_BYTES, Schedule
from models.ops.walk.tiles import largest_tile


class Translution(Protocol):
    """The part of models/mixers/translution.py that its cost depends on."""

    dim: int
    grid: OffsetGrid
    heads: int
    head_dim: int
    rank: int | None
    schedule: Schedule
    importance: Importance | None

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
    pairs = load.samples * _walk_flops(mixer, whole, load.pair_parts, load.part) // load.head_parts
    projections = [p for name, p in mixer.named_parameters() if name.endswith(".weight")]
    dense = sum(2 * T * p.numel() for p in projections) // load.head_parts
    gradients = tuple(T * width * size.statistics for width in here.sources)
    work = T * (here.values * size.product + here.heads * 4) + sum(gradients)
    if load.pair_parts > 1 and len(gradients) > 1:  # summed over the parts in one piece
        work += sum(gradients)
    keeps, read, numbers = mixer.recipe.keep, 0, T * here.heads * size.statistics
    if mixer.importance == "received":  # logits of all pairs, in forward and, for the outputs t, in backward
        read = load.samples * _walk_flops(mixer, whole, load.pair_parts, load.part, logits=True)
        read, keeps = read // load.head_parts, False
    return Cost(
        forward=pairs + dense + read,
        recomputed=(0 if keeps else pairs) - read,  # q, k and v of every pair; backward reads once, not twice
        saved=_saved(mixer, here, load, T) + numbers * (mixer.importance is not None),
        work=work + _temporaries(mixer, here, load),
        head_gradients=T * mixer.dim * size.residual + T * here.narrow * size.product,
        partials=T * (2 * here.heads + here.values) * size.statistics,
        source_gradients=gradients,
        importance={None: (0, 0), "class": (numbers, 0), "received": (numbers, 3 * numbers)}[
            mixer.importance
        ],
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


def _walk_flops(
    mixer: Translution, widths: _Widths, parts: int, part: int | None, logits: bool = False
) -> int:
    """FLOPs forward of the pass over all pairs of one sample: products with the bank, logits and, unless only
    `logits` are asked for, outputs; of one of so many parts, or of the busiest. Dense logits and values are
    computed by every part."""
    dense = set() if mixer.schedule.in_bands else _dense_operands(mixer.recipe)
    values = {id(each) for each in widths.operands[-len(mixer.recipe.values) :]}

    def attention(each: tuple[Operand, str, int], pairs: int) -> int:
        return pairs * each[2] * (2 if id(each) in values else 1)  # half of ⟨q, k⟩, or a·v

    def of(schedule: Schedule) -> int:
        query_rows, key_rows = schedule.rows
        total = 0
        for each in widths.operands[: -len(values)] if logits else widths.operands:
            operand, side, width = each
            if operand.bank is not None:
                rows = query_rows if side == "query" else key_rows
                total += 2 * rows * widths.sources[operand.source] * width
            total += attention(each, mixer.grid.num_pairs if operand in dense else schedule.pairs)
        return total

    if parts == 1:
        return of(mixer.schedule)
    shares = deal(mixer.schedule, parts)
    if part is not None:
        return of(shares[part].schedule(mixer.schedule))
    return max(of(share.schedule(mixer.schedule)) for share in shares)


def _dense_operands(recipe: Recipe) -> set[Operand]:
    """Of logits and values that no bank multiplies."""
    logits = [pair for pair in recipe.logits if all(operand.bank is None for operand in pair)]
    return {operand for pair in logits for operand in pair} | {v for v in recipe.values if v.bank is None}


def _saved(mixer: Translution, here: _Widths, load: Load, T: int) -> int:
    size = load.sizes
    other = sum(here.sources) - (mixer.dim if mixer.rank is None else 0)
    saved = T * mixer.dim * size.residual + T * other * size.product
    saved += T * (here.heads + here.values) * size.statistics
    saved += T * here.up * size.product
    if not load.cpu and len(here.sources) > 2 - (mixer.rank is not None):
        saved += mixer.dim * other * size.product  # weights side by side (models/mixers/joined.py)
    fused_alpha = _fused_alpha(mixer, load)
    if size.product != size.statistics and fused_alpha and load.pair_parts == 1:  # rounded at once
        saved -= T * here.values * (size.statistics - size.product)
    elif size.product != size.statistics:
        saved += T * here.values * size.product
    if mixer.recipe.keep and not fused_alpha:
        saved += _kept(mixer, here) * load.samples * size.product // load.pair_parts
    if size.product != size.residual:  # autocast saves its own copy of x
        saved += T * mixer.dim * size.product
        saved -= T * mixer.dim * size.residual if fused_alpha else 0  # of which all sources are products
    return saved


def _fused_alpha(mixer: Translution, load: Load) -> bool:
    """Whether α-Translution's kernels are taken: they keep no operands, and write outputs in the products'
    dtype where nothing of another rank is to be merged with them."""
    return mixer.rank is not None and not load.cpu and mixer.recipe.kernel != "loop"


def _kept(mixer: Translution, here: _Widths) -> int:
    """Numbers of q, k and v that a sample keeps."""
    dense = set() if mixer.schedule.in_bands else _dense_operands(mixer.recipe)
    rows: dict[str, int] = dict(zip(("query", "key"), mixer.schedule.rows, strict=True))
    if not mixer.schedule.in_bands:
        rows = dict.fromkeys(rows, mixer.schedule.pairs)
    return sum(rows[side] * width for operand, side, width in here.operands if operand not in dense)


def _temporaries(mixer: Translution, here: _Widths, load: Load) -> int:
    """Bytes of the largest step of a walk in backward; ops/ cuts the steps."""
    if mixer.schedule.in_bands:
        return _band_temporaries(mixer, here, load)
    if has_dense_part(mixer.recipe):
        return _dense_temporaries(mixer, here, load)
    return _pair_temporaries(mixer, here, load)


def _workspace(mixer: Translution, load: Load) -> int:
    return workspace_bytes(mixer.recipe.workspace, "cpu" if load.cpu else "cuda")


def _pair_bytes(here: _Widths, operands: Sequence[tuple[Operand, str, int]], size: Sizes) -> int:
    """See `models.ops.walk.operands.pair_bytes`."""
    read = {(operand.source, side) for operand, side, _ in operands}
    summed = 0  # products that are summed, in the statistics' dtype
    if size.product != size.statistics:
        summed = 3 * max(width for *_, width in operands) * size.statistics
    total = sum(here.sources[source] for source, _ in read) * (size.product + size.statistics)
    return total + 2 * sum(width for *_, width in operands) * size.product + summed


def _pair_temporaries(mixer: Translution, here: _Widths, load: Load) -> int:
    size, schedule, workspace = load.sizes, mixer.schedule, _workspace(mixer, load)
    read = {(operand.source, side) for operand, side, _ in here.operands}
    summed = 0
    if size.product != size.statistics:
        summed = 3 * max(width for *_, width in here.operands) * size.statistics
    pair_bytes = _pair_bytes(here, here.operands, size)
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


def _band_temporaries(mixer: Translution, here: _Widths, load: Load) -> int:
    """Strips, the rows of a block with their gradients, and the logits of a tile with theirs."""
    size, schedule = load.sizes, mixer.schedule
    pair_bytes = _pair_bytes(here, here.operands, size)
    step = schedule.batch_slice(load.samples, pair_bytes, _workspace(mixer, load))
    multiplied = {(o.source, side) for o, side, _ in here.operands if o.bank is not None}
    copied = schedule.largest_copy(step == load.samples)
    rows = copied * sum(here.sources[source] for source, _ in multiplied) * (size.product + size.statistics)
    block = 2 * schedule.largest_block * sum(width for *_, width in here.operands) * size.product
    batch, widest = step * here.heads, max(width for *_, width in here.operands) // here.heads
    device, bands = "cpu" if load.cpu else "cuda", [b for run in schedule.classes for b in run if b.band]
    tiles = [largest_tile(block, batch, device) for block in bands]
    logits = max((tile.logits for tile in tiles), default=0)
    rows_of_tile = max((tile.rows for tile in tiles), default=0)
    held = 2 * logits + 5 * rows_of_tile * widest  # q, k, v, ∂out and a product
    return step * (rows + block) + batch * held * size.statistics


def _dense_temporaries(mixer: Translution, here: _Widths, load: Load) -> int:
    """Logits and weights of some queries with their gradients, and the largest chunk of relative pairs."""
    size, grid, parts = load.sizes, mixer.grid, parts_of(mixer.recipe)
    relative = [each for each in here.operands if each[0] in _relative_operands(parts)]
    pair_bytes = _pair_bytes(here, relative, size)
    cut = cut_of(
        grid, load.samples, here.heads, size.statistics, pair_bytes, _workspace(mixer, load), load.cpu
    )
    rest = grid.grid_tokens // grid.shape[0]
    held = BUFFERS * cut.samples * here.heads * cut.rows * rest * grid.num_tokens * size.statistics
    used = {operand.source for operand, *_ in relative}
    columns = cut.samples * grid.num_tokens * sum(here.sources[i] for i in used)
    pairs = min(cut.largest, grid.num_pairs) * cut.samples
    values = sum(width for operand, _, width in relative if operand in parts.relative.values)
    numbers = (2 * sum(width for *_, width in relative) + values) * size.product  # with ∂out
    numbers += (max(width for *_, width in relative) + 3 * here.heads) * size.statistics
    dense = cut.samples * grid.num_tokens * here.inner * size.statistics  # a product
    return held + columns * (size.product + size.statistics) + pairs * numbers + dense


def _relative_operands(parts: Parts) -> set[Operand]:
    logits = {operand for pair in parts.relative.logits for operand in pair}
    return logits | set(parts.relative.values)
