"""Banks larger than what a process may have are saved, resumed on another mesh, and exported.

The system itself enforces the limit (RLIMIT_DATA: private memory that can be written to).
"""

import ctypes
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from launch.checkpoint import streamed_export
from models import ViTConfig, build_model
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import Index, read_contents
from parallel.checkpoint.load import load_state
from parallel.checkpoint.save import Saver
from parallel.engine.build import build_engine
from parallel.engine.interface import MOMENTS, WEIGHT, Engine
from parallel.engine.optimizer import OptimizerConfig
from parallel.mesh import Mesh, ParallelConfig, forget_mesh, join_mesh
from parallel.processes import join_processes
from parallel.sharding.layout import Shard, shards
from parallel.spawn import run_processes

NET = ViTConfig.model_validate(
    {
        "image_size": 28,
        "patch_size": 4,
        "channels": 1,
        "classes": 10,
        "width": 256,
        "depth": 2,
        "mlp": 128,
        "pool": "mean",
        "mixer": {"kind": "translution", "heads": 4, "head_dim": 64, "relative": "q"},
    }
)
SMALL = NET.model_copy(update={"width": 32, "depth": 1, "mlp": 32})
ENTRY = 4 * 256 * 256
BANKS = NET.depth * 13 * 13 * ENTRY  # bytes of their weights, 89 MB
BUFFERS = 10 << 20  # bytes for a block of a file, plans, Python's own
CPU = torch.device("cpu")
BEFORE, AFTER = ParallelConfig(offset=4), ParallelConfig(offset=2, tensor=2)


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """This process may take so many bytes more than it has now, which is too little for the banks."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    now = int(status.split("VmData:")[1].split()[0]) << 10
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, before[1]))
    try:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(BANKS, dtype=torch.uint8)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def places(net: ViTConfig, mesh: Mesh) -> dict[str, Shard]:
    with torch.device("meta"):
        return shards(build_model(net), mesh)


def share(mesh: Mesh) -> int:
    """Bytes of the weights and moments that a rank holds."""
    return 12 * sum(shard.numel for shard in places(NET, mesh).values())


def engine_of(net: ViTConfig, parallel: ParallelConfig, mesh: Mesh) -> Engine:
    """Its weights depend on the seed and on names and offsets alone."""
    return build_engine(net, OptimizerConfig(), parallel, mesh, CPU, batch=4)


def save(net: ViTConfig, mesh: Mesh, path: Path) -> None:
    """With moments of weight + 1 and weight + 2."""
    engine = engine_of(net, BEFORE, mesh)
    held, state = places(net, mesh), engine.state()
    for name, weight in state.tensors[WEIGHT].items():
        for number, moment in enumerate(MOMENTS, 1):
            state.tensors[moment][name].copy_(weight).add_(number)
    index = Index(
        step=1,
        samples=4,
        mesh={"data": 1, "offset": 4, "tensor": 1},
        parameters={name: shard.full for name, shard in held.items()},
        buffers={},
        run={},
        manifests=(),
    )
    saver = Saver(held, mesh, background=False)
    saver.start(path, state, index, lambda: None)
    saver.finish()


def resume(net: ViTConfig, mesh: Mesh, path: Path) -> tuple[int, bool]:
    """Returns the bytes read, and whether all numbers are what they were."""
    engine = engine_of(net, AFTER, mesh)
    state = engine.state()
    expected = [_sum(weight) for weight in state.tensors[WEIGHT].values()]
    for tensors in state.tensors.values():
        for values in tensors.values():
            values.fill_(-1)
    read = load_state(Catalogue(read_contents(path)), state, places(net, mesh))
    same = all(
        [_sum(values.sub_(number)) for values in state.tensors[kind].values()]
        == [pytest.approx(each, abs=1e-2) for each in expected]
        for number, kind in enumerate((WEIGHT, *MOMENTS))
    )
    return read, same


def _sum(values: Tensor) -> float:
    return sum(float(part.sum()) for part in values.split(4096))


def save_and_resume(folder: Path) -> tuple[float, bool]:
    """Bytes read over those of the rank's share, and whether all numbers are what they were."""
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what tensors had goes back to the system
    join_processes(CPU)
    mesh = join_mesh(BEFORE)
    save(SMALL, mesh, folder / "small")  # so that all code is loaded
    with at_most(share(mesh) + ENTRY + BUFFERS):
        save(NET, mesh, folder / "step")
    forget_mesh()
    mesh = join_mesh(AFTER)
    resume(SMALL, mesh, folder / "small")
    with at_most(share(mesh) + ENTRY + BUFFERS):
        read, same = resume(NET, mesh, folder / "step")
    return read / share(mesh), same


def export(folder: Path) -> None:
    streamed_export._ONCE = ENTRY
    catalogue = Catalogue(read_contents(folder / "small"))
    streamed_export.export_checkpoint(catalogue, SMALL, folder / "small.safetensors")
    with at_most(ENTRY + BUFFERS):
        catalogue = Catalogue(read_contents(folder / "step"))
        streamed_export.export_checkpoint(catalogue, NET, folder / "net.safetensors")


def test_no_process_needs_more_than_its_share_and_an_entry(tmp_path: Path):
    for read, same in run_processes(partial(save_and_resume, tmp_path), 4, seconds=100):
        assert same
        assert read < 1.1
    run_processes(partial(export, tmp_path), 1, seconds=60)
    whole = engine_of(NET, ParallelConfig(), Mesh())
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        for name, parameter in whole.model.named_parameters():
            assert torch.equal(file.get_tensor(name), parameter)
