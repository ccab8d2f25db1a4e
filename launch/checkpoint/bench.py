"""`translution bench checkpoint`: saving and loading against plain copies of the same bytes.

Two processes of one thread each. The speed of a shared machine varies, so each repetition measures everything
once, and ratios are taken within it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models import ViTConfig, build_model
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import Index, read_contents
from parallel.checkpoint.load import load_state
from parallel.checkpoint.save import Saver
from parallel.engine.build import build_engine
from parallel.engine.interface import Engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh
from parallel.planner.units import size_text
from parallel.processes import join_processes
from parallel.sharding.layout import Shard, shards
from parallel.spawn import run_processes
from trainer.reporting.table import Table

CPU = torch.device("cpu")
WORLD = 2
TARGETS = {"write": 0.7, "read": 0.7, "stall": 0.3, "bytes": 1.1}
_COPIED = 8 << 20  # bytes at once


def bench_checkpoint(folder: Path, width: int, repeat: int, seconds: float = 1800) -> dict[str, Any]:
    """Measure in two fresh processes, with files in `folder` that are deleted.

    Raises UserError when they do not end within `seconds`, and for a folder that cannot be used.
    """
    try:
        work = Path(tempfile.mkdtemp(prefix=".bench-", dir=folder))
    except OSError as error:
        raise UserError(f"--folder {folder}: {error.strerror}") from None
    try:
        by_rank = run_processes(partial(_measure, work, _net(width), repeat), WORLD, seconds=seconds)
    except TimeoutError as error:
        raise UserError(f"bench checkpoint: {error} ({seconds:g} s)") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    read = max(result.pop("read_over_share") for result in by_rank)
    return by_rank[0] | {"read_over_share": read, "targets": TARGETS}


def _net(width: int) -> ViTConfig:
    mixer = {"kind": "translution", "heads": width // 64, "head_dim": 64}
    sizes = {"image_size": 28, "patch_size": 4, "classes": 10, "width": width, "depth": 1, "mlp": width}
    return ViTConfig.model_validate({**sizes, "pool": "mean", "mixer": mixer})


def _measure(work: Path, net: ViTConfig, repeat: int) -> dict[str, Any]:
    join_processes(CPU)
    before = ParallelConfig(offset=WORLD)
    engine, held = _engine(net, before), _held(net, before)
    saving = {background: Saver(held, engine.mesh, background) for background in (False, True)}
    rows = [_repetition(work, engine, held, saving) for _ in range(repeat + 1)][1:]  # the first fills caches
    _save(saving[False], engine, held, work / "moved")[1]()
    size = sum(file.stat().st_size for file in (work / "moved").glob("*.safetensors"))
    del engine
    forget_mesh()
    after = ParallelConfig(tensor=WORLD)
    engine, held = _engine(net, after), _held(net, after)
    read = _load(work / "moved", engine, held)
    state = engine.state()
    share = sum(t.numel() * t.element_size() for own in state.tensors.values() for t in own.values())
    ratios = {
        "write": [row["copy"] / row["save"] for row in rows],
        "read": [row["copy"] / row["load"] for row in rows],
        "stall": [row["stall"] / row["save"] for row in rows],
    }
    return {
        "bytes": size,
        "processes": WORLD,
        "repeat": repeat,
        "seconds": {key: [row[key] for row in rows] for key in rows[0]},
        "ratios": ratios,
        "read_over_share": read / share,
    }


def _repetition(
    work: Path, engine: Engine, held: dict[str, Shard], saving: dict[bool, Saver]
) -> dict[str, float]:
    """Seconds of the slowest rank."""
    now, behind, copy = (work / name for name in ("now", "behind", "copy"))
    row = {"save": _time(lambda: _save(saving[False], engine, held, now)[1]())}
    stall, finish = _save(saving[True], engine, held, behind)
    finish()
    row["stall"] = _slowest(stall)
    row["copy"] = _time(lambda: _copy(now, copy))
    row["load"] = _time(lambda: _load(now, engine, held))
    dist.barrier()
    if dist.get_rank() == 0:
        for path in (now, behind, copy):
            shutil.rmtree(path)
    return row


def _engine(net: ViTConfig, parallel: ParallelConfig) -> Engine:
    return build_engine(net, OptimizerConfig(), parallel, join_mesh(parallel), CPU, batch=8)


def _held(net: ViTConfig, parallel: ParallelConfig) -> dict[str, Shard]:
    with torch.device("meta"):
        return shards(build_model(net), Mesh(1, parallel.offset, parallel.tensor, dist.get_rank()))


def _save(
    saver: Saver, engine: Engine, held: dict[str, Shard], path: Path
) -> tuple[float, Callable[[], None]]:
    """Begin to save; returns the seconds after which training may go on, and what waits for the end."""
    mesh, state = engine.mesh, engine.state()
    index = Index(
        step=1,
        samples=8,
        mesh={"data": mesh.data, "offset": mesh.offset, "tensor": mesh.tensor},
        parameters={name: shard.full for name, shard in held.items()},
        buffers={},
        run={},
        manifests=(),
    )
    dist.barrier()
    start = time.perf_counter()
    saver.start(path, state, index, lambda: None)
    return time.perf_counter() - start, saver.finish


def _load(path: Path, engine: Engine, held: dict[str, Shard]) -> int:
    return load_state(Catalogue(read_contents(path)), engine.state(), held)


def _copy(path: Path, to: Path) -> None:
    """This rank's files, by plain reads and writes, and to the disk."""
    to.mkdir(exist_ok=True)
    for file in sorted(path.glob(f"rank-{dist.get_rank():04d}.*.safetensors")):
        with file.open("rb", buffering=0) as old, (to / file.name).open("wb", buffering=0) as new:
            shutil.copyfileobj(old, new, _COPIED)
            os.fsync(new.fileno())


def _time(action: Callable[[], object]) -> float:
    """Seconds of the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    action()
    return _slowest(time.perf_counter() - start)


def _slowest(seconds: float) -> float:
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print what `bench_checkpoint` measured: one JSON object, or a table."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    size, seconds, ratios = result["bytes"], result["seconds"], result["ratios"]
    table = Table(f"{size_text(size)} of weights and moments, {result['processes']} processes of one thread")
    titles = {"copy": "plain copy", "save": "save", "load": "load on the same mesh", "stall": "stall"}
    for key, title in titles.items():
        middle = statistics.median(seconds[key])
        table.put(title, "s", f"{middle:.2f}")
        table.put(title, "rate", "–" if key == "stall" else f"{size_text(size / middle)}/s")
    compared = {"write": ("save", "≥"), "read": ("load on the same mesh", "≥"), "stall": ("stall", "≤")}
    for key, (title, sign) in compared.items():
        low, middle, high = min(ratios[key]), statistics.median(ratios[key]), max(ratios[key])
        table.put(title, "ratio", f"{middle:.2f} ({low:.2f}–{high:.2f})")
        table.put(title, "target", f"{sign} {TARGETS[key]}")
    moved = "load on another mesh"
    table.put(moved, "ratio", f"{result['read_over_share']:.3f}")
    table.put(moved, "target", f"≤ {TARGETS['bytes']}")
    table.show()
    print(
        f"\nmedian of {result['repeat']} repetitions, with the range. save, load: bandwidth over that of a"
        "\n  plain copy of the same files, flushed to the disk. stall: how long training stands still for a"
        "\n  save in the background, over one that it waits for. load on another mesh: bytes over the share."
    )
