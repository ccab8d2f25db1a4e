"""What a run will need: one rank's parameters, memory, FLOPs and bytes sent.

Everything is computed from the config on the meta device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from models import ModelConfig
from parallel.engine.interface import Precision, micro_batch_size
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.flops import Flops, sample_flops
from parallel.planner.layers import BankEntries, LayerKinds
from parallel.planner.memory import Memory, fullest_rank, step_memory
from parallel.planner.traffic import micro_batch_traffic, step_traffic
from parallel.planner.units import size_text
from parallel.traffic_counter import Traffic


@dataclass(frozen=True)
class Plan:
    """A net on a mesh; per-rank values are those of the fullest rank, or of the rank that was asked for.

    parameters, held   by part, of the whole net and of the rank
    traffic            payloads of one optimizer step (traffic_counter.py); `sent` are the rank's bytes
    sample, share      FLOPs of one sample: of the whole net, and of the rank
    breakeven_batch    see the function of this name
    banks              how each kind of layer shares its bank entries
    remarks            what every rank computes whole, and what could not be planned
    complete           False where something could not be planned: memory, traffic and FLOPs are lower bounds
    net                what was planned
    """

    mesh: Mesh
    parallel: ParallelConfig
    batch: int
    accumulate: int
    precision: Precision
    parameters: dict[str, int]
    held: dict[str, int]
    memory: Memory
    traffic: Traffic
    sample: Flops
    share: Flops
    breakeven_batch: int | None
    banks: tuple[BankEntries, ...] = ()
    remarks: tuple[str, ...] = ()
    complete: bool = True
    net: LayerKinds = field(kw_only=True, repr=False, compare=False)

    @property
    def total(self) -> int:
        """The parameters of the whole net."""
        return sum(self.parameters.values())

    @property
    def micro_batch(self) -> int:
        """Samples of a rank at a time."""
        return self.batch // (self.accumulate * self.mesh.data)

    @property
    def sent(self) -> dict[str, int]:
        """Bytes that leave the rank in one optimizer step, by axis."""
        return self.traffic.sent(self.mesh)

    def fits(self, memory: float) -> bool:
        """Whether the peak and what CUDA and NCCL take stay below so many bytes on each device."""
        return self.memory.needed <= memory

    def summary(self) -> str:
        """One line for a log or a person."""
        peak = ("" if self.complete else "at least ") + size_text(self.memory.peak)
        sent = size_text(sum(self.sent.values()))
        return (
            f"{self.total:,} parameters on {self.mesh}: {peak} per process at the peak, {sent} sent per step"
        )

    def logged(self) -> dict[str, Any]:
        """The predictions that a run records next to its measurements."""
        counted = self.traffic.by_group(self.mesh)
        return {"peak_bytes": self.memory.peak, "bytes_sent": counted.sent(self.mesh)}

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "mesh": {"data": self.mesh.data, "offset": self.mesh.offset, "tensor": self.mesh.tensor},
            "engine": self.parallel.engine,
            "zero": self.parallel.zero,
            "activations": self.parallel.activations,
            "precision": self.precision,
            "batch": self.batch,
            "accumulate": self.accumulate,
            "parameters": {"total": self.total, **self.parameters},
            "held": {"total": sum(self.held.values()), **self.held},
            "banks": [bank._asdict() for bank in self.banks],
            "memory": asdict(self.memory),
            "flops_per_sample": self.sample._asdict(),
            "flops_per_sample_and_rank": self.share._asdict(),
            "payload_bytes": {f"{axis}/{kind}": n for (axis, kind), n in self.traffic.payload.items()},
            "bytes_sent": self.sent,
            "offset_beats_zero3_up_to_batch": self.breakeven_batch,
            "remarks": list(self.remarks),
        }


def plan(
    model: ModelConfig | LayerKinds,
    parallel: ParallelConfig,
    mesh: Mesh,
    batch: int,
    accumulate: int = 1,
    precision: Precision = "fp32",
    cpu: bool = False,
    own_rank: bool = False,
    counted: bool = True,
) -> Plan:
    """Predicts a run; `mesh` is a place on a mesh that need not exist, `batch` the global batch.

    `counted`: see `layer_bytes`. With `own_rank` for the mesh's own rank, else for the fullest one, whose
    work is the busiest one's.

    Raises UserError where net, mesh and batch do not fit, with what would be right.
    """
    net = model if isinstance(model, LayerKinds) else layer_kinds(model)
    micro_batch_size(batch, accumulate, mesh.data)
    net.pieces(mesh)  # which refuses a net that does not divide
    place = mesh if own_rank else fullest_rank(net, mesh)
    return Plan(
        place,
        parallel,
        batch,
        accumulate,
        precision,
        net.held(Mesh()),
        net.held(place),
        step_memory(net, place, parallel, batch, accumulate, precision, cpu, counted),
        step_traffic(net, place, parallel, batch, accumulate, precision),
        sample_flops(net, Mesh(), parallel),
        sample_flops(net, place, parallel, own_rank),
        breakeven_batch(net, mesh, parallel, precision),
        net.bank_entries(),
        (*net.replicated(mesh), *(f"not planned: {name} ({why})" for name, why in net.not_planned.items())),
        not net.not_planned,
        net=net,
    )


def layer_kinds(model: ModelConfig) -> LayerKinds:
    """The net's kinds of layers; raises UserError for a net that cannot be built."""
    try:
        return LayerKinds(model)
    except ValueError as error:
        raise UserError(f"model: {error}") from None
    except OSError as error:
        raise UserError(f"model: cannot be built: {error.filename or 'a file'}: {error.strerror}") from None


def breakeven_batch(
    net: LayerKinds, mesh: Mesh, parallel: ParallelConfig, precision: Precision
) -> int | None:
    """Break-even micro-batch of a model-parallel group: below it this mesh sends less than ZeRO-3 alone
    over the same ranks, which then share the samples.

    The model-parallel axes send in proportion to the batch, ZeRO-3 its three passes of weights and
    gradients at any batch. None where nothing is model-parallel.
    """
    if mesh.model == 1:
        return None
    alone = Mesh(1, mesh.offset, mesh.tensor, mesh.model_rank)
    many = 1000
    sent = micro_batch_traffic(net, alone, parallel, many, precision).sent(alone)
    zero3 = parallel.model_copy(update={"engine": "deepspeed", "zero": 3, "offset": 1, "tensor": 1})
    replicas = Mesh(mesh.model)
    gathered = step_traffic(net, replicas, zero3, mesh.model, 1, precision).sent(replicas)
    return sum(gathered.values()) * many // sum(sent.values())
