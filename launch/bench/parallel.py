"""`translution bench parallel`: offset parallelism against one process and against plain ZeRO-3.

Two processes of one thread each. The speed of a shared machine varies, so each repetition measures both:
one process works while the other waits, then both work, which yields one ratio. CPU time, which other
programs do not affect, shows how evenly the work is split; only wall time includes waiting and sending.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from models import ViTConfig
from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.ops.streamed import streamed
from parallel.engine.build import build_engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh
from parallel.planner.layers import LayerKinds
from parallel.planner.traffic import step_traffic
from parallel.planner.units import size_text
from parallel.processes import join_processes
from parallel.sharding.offset import shard_offsets
from parallel.spawn import run_processes
from parallel.traffic_counter import counted_traffic
from trainer.data.source import Batch
from trainer.reporting.table import Table
from trainer.train import train_step
from trainer.verify.verify import bank_bytes

TARGET = 1.8  # of an operator call on a quiet machine
CPU = torch.device("cpu")


class Size(NamedTuple):
    """Full Translution of width C = D over a square of `side` tokens, B samples in all."""

    side: int = 14
    width: int = 192
    heads: int = 3
    batch: int = 8

    def __str__(self) -> str:
        return f"{self.side}×{self.side}, B={self.batch}, C={self.width}, H={self.heads}"


class Seconds(NamedTuple):
    """Wall and CPU seconds of the slowest rank."""

    wall: float
    cpu: float


def bench_parallel(repeat: int, size: Size = Size(), seconds: float = 1800) -> dict[str, Any]:  # noqa: B008
    """Measure in two fresh processes; raises UserError when they do not end within `seconds`."""
    try:
        return run_processes(_measure, 2, repeat, size, seconds=seconds)[0]
    except TimeoutError as error:
        raise UserError(f"bench parallel: {error} ({seconds:g} s)") from None


def _measure(repeat: int, size: Size) -> dict[str, Any]:
    join_processes(CPU)
    return {
        "size": str(size),
        "torch": torch.__version__,
        "processes": 2,
        "threads": 1,
        "repeat": repeat,
        "target": TARGET,
        "operator": _operator(repeat, size),
        "doubled": _doubled(size),
        "step": _steps(repeat, size),
    }


def _operator(repeat: int, size: Size) -> dict[str, Any]:
    """Forward and backward of one operator, on one rank with all classes and on two with half each."""
    mesh = join_mesh(ParallelConfig(offset=2))
    grid = OffsetGrid((size.side, size.side))
    single = _Operator(grid, size, size.batch, Mesh()) if mesh.rank == 0 else None
    halves = _Operator(grid, size, size.batch, mesh)
    turns = _alternate(single, halves, repeat)
    sent = halves.sent(mesh)
    held = [halves.bank_bytes * 2, halves.bank_bytes]
    if single:
        held[0] = single.bank_bytes
    forget_mesh()
    return {"bank_bytes": held, "sent": sent, **turns}


def _doubled(size: Size) -> list[dict[str, Any]]:
    """The operator's bytes on a grid twice as long, with the same B·N·C."""
    mesh = join_mesh(ParallelConfig(offset=2))
    rows = []
    for sides, batch in (((size.side, size.side), size.batch), ((size.side, 2 * size.side), size.batch // 2)):
        operator = _Operator(OffsetGrid(sides), size, batch, mesh)
        rows.append(
            {
                "grid": "×".join(map(str, sides)),
                "batch": batch,
                "bank_bytes": operator.bank_bytes,
                "sent": operator.sent(mesh),
            }
        )
    forget_mesh()
    return rows


def _steps(repeat: int, size: Size) -> list[dict[str, Any]]:
    """Whole training steps of a net of one layer: one process, offset 2, and ZeRO-3 over data 2."""
    rows = []
    # As in a deep net, where a layer's banks are gathered once for forward and once for backward.
    sizes = {"stage3_prefetch_bucket_size": 0, "stage3_max_live_parameters": 1}
    zero3 = ParallelConfig(engine="deepspeed", zero=3, deepspeed={"zero_optimization": sizes})
    for parallel in (ParallelConfig(offset=2), zero3):
        mesh = join_mesh(parallel)
        single = _Step(size, ParallelConfig(), Mesh()) if mesh.rank == 0 else None
        spread = _Step(size, parallel, mesh)
        turns = _alternate(single, spread, repeat)
        with counted_traffic(mesh) as traffic:
            spread()
        row = {"bank_bytes": spread.bank_bytes, "sent": traffic.sent(mesh)}
        planned = step_traffic(LayerKinds(spread.net), mesh, parallel, size.batch, 1, "fp32")
        row["planned"] = planned.by_group(mesh).sent(mesh)
        rows.append({"layout": f"offset {mesh.offset}" if mesh.model > 1 else "plain ZeRO-3", **row, **turns})
        forget_mesh()
    return rows


class _Operator:
    """The streamed operator over this rank's residue classes, forward and backward."""

    def __init__(self, grid: OffsetGrid, size: Size, batch: int, mesh: Mesh) -> None:
        with torch.device("meta"):
            self._layer = Translution(size.width, grid, size.heads, size.width // size.heads)
        if mesh.offset > 1:
            shard_offsets(self._layer, mesh)
        torch.manual_seed(0)
        shape = (self._layer.schedule.num_entries, size.width, size.width)
        self._banks = [torch.randn(shape).mul_(size.width**-0.5).requires_grad_() for _ in "qkv"]
        self._x = torch.randn(grid.num_tokens, batch, size.width, requires_grad=True)
        self._grad = torch.randn_like(self._x)

    @property
    def bank_bytes(self) -> int:
        return sum(bank.numel() * bank.element_size() for bank in self._banks)

    def __call__(self) -> None:
        layer = self._layer
        (out,) = streamed(layer.recipe, layer.schedule, [self._x], self._banks, layer.combine)
        torch.autograd.grad(out, [self._x, *self._banks], self._grad)

    def sent(self, mesh: Mesh) -> dict[str, int]:
        """Bytes that leave this rank in one call."""
        with counted_traffic(mesh) as traffic:
            self()
        return traffic.sent(mesh)


class _Step:
    """An optimizer step of a ViT of one layer on the same random batch."""

    def __init__(self, size: Size, parallel: ParallelConfig, mesh: Mesh) -> None:
        mixer = {"kind": "translution", "heads": size.heads, "head_dim": size.width // size.heads}
        self.net = ViTConfig.model_validate(
            {
                "image_size": 4 * size.side,
                "patch_size": 4,
                "classes": 10,
                "width": size.width,
                "depth": 1,
                "mlp": 4 * size.width,
                "pool": "mean",
                "mixer": mixer,
            }
        )
        self._engine = build_engine(self.net, OptimizerConfig(), parallel, mesh, CPU, batch=size.batch)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((size.batch, 3, *self.net.image_shape), generator=generator)
        labels = torch.randint(10, (size.batch,), generator=generator)
        self._batch = Batch(*(part.chunk(mesh.data)[mesh.data_rank] for part in (images, labels)))

    @property
    def bank_bytes(self) -> int:
        return bank_bytes(self._engine.model)

    def __call__(self) -> None:
        train_step(self._engine, [self._batch])


def _alternate(
    single: Callable[[], None] | None, both: Callable[[], None], repeat: int
) -> dict[str, list[float]]:
    """Wall seconds of one process and of two by repetition, and the ratios of wall and CPU time."""
    ones, twos = [], []
    for repetition in range(repeat + 1):
        one, two = _time(single or (lambda: None)), _time(both)
        if repetition:  # the first builds tables and buffers
            ones.append(one)
            twos.append(two)
    return {
        "one": [seconds.wall for seconds in ones],
        "two": [seconds.wall for seconds in twos],
        "gain": [a.wall / b.wall for a, b in zip(ones, twos, strict=True)],
        "cpu_gain": [a.cpu / b.cpu for a, b in zip(ones, twos, strict=True)],
    }


def _time(action: Callable[[], None]) -> Seconds:
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    taken = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return Seconds(*taken.tolist())


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print what `bench_parallel` measured: one JSON object, or a table and what its columns mean."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    table = Table(f"Translution of {result['size']}, fp32, two processes of one thread each")
    operator = result["operator"]
    _put(table, "operator, offset 1", operator["bank_bytes"][0], {}, operator["one"])
    _put(table, "operator, offset 2", operator["bank_bytes"][1], operator["sent"], operator["two"], operator)
    for row in result["doubled"]:
        _put(table, f"operator, offset 2, {row['grid']}, B={row['batch']}", row["bank_bytes"], row["sent"])
    first = result["step"][0]
    _put(table, "step of one layer, offset 1", operator["bank_bytes"][0], {}, first["one"])
    for row in result["step"]:
        title = f"step of one layer, {row['layout']}"
        _put(table, title, row["bank_bytes"], row["sent"], row["two"], row)
        table.put(title, "as planned", "yes" if row["sent"] == row["planned"] else f"{row['planned']}")
    table.show()
    best = min(operator["one"]) / min(operator["two"])
    print(
        f"\nms: median of {result['repeat']} repetitions, forward and backward. gain: over one process in the"
        f"\n  same repetition, median and range. CPU gain: in CPU time, which other programs do not affect."
        f"\nsent: bytes that leave one rank. The global batch is the same in all rows; ZeRO-3 splits it."
        f"\noperator, offset 2: best over best {best:.2f}; target on a quiet machine ≥ {result['target']}."
    )


def _put(
    table: Table,
    title: str,
    held: int,
    sent: dict[str, int],
    seconds: list[float] | None = None,
    gains: dict[str, list[float]] | None = None,
) -> None:
    axes = {axis: count for axis, count in sent.items() if count}
    cells = {
        "banks/rank": size_text(held),
        "sent": " + ".join(f"{count:,} {axis}" for axis, count in axes.items()) or "0",
        "ms": f"{1e3 * statistics.median(seconds):.0f}" if seconds else "–",
    }
    if gains:
        for column, key in (("gain", "gain"), ("CPU gain", "cpu_gain")):
            low, middle, high = min(gains[key]), statistics.median(gains[key]), max(gains[key])
            cells[column] = f"{middle:.2f} ({low:.2f}–{high:.2f})"
    for column, cell in cells.items():
        table.put(title, column, cell)
