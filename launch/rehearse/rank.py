"""One rank of a run, rehearsed: the real engine and the real step, on fake tensors."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models import GPTConfig, ModelConfig
from models.ops.cards import CARDS
from parallel.engine.build import build_engine
from parallel.engine.interface import Engine, micro_batch_size
from parallel.engine.parameters import MOMENTS
from parallel.mesh import Mesh, mesh_of
from parallel.rehearsal.collectives import Collective, recorded_collectives
from parallel.rehearsal.compare import wrongly_held
from parallel.rehearsal.fakes import STAND_INS, fake_device, name_modules, one_rank
from parallel.rehearsal.memory import Allocations, Peak
from parallel.rehearsal.recorder import Work
from trainer.config.run import RunConfig
from trainer.metrics import Classification, LanguageModel
from trainer.train import train_step

STEPS = 2  # the first has no optimizer states yet
FEW = 3  # micro-batches: a first, one like all others, a last


class Part(NamedTuple):
    """A rank to be rehearsed: of `world`, with the kernels of a card (its key in CARDS) or of the CPU."""

    config: RunConfig
    world: int
    rank: int
    card: str | None


class RankReport(NamedTuple):
    """What one rank did in its second step.

    mesh         its place; without groups
    held         the shape of its part of each parameter; `wrong`: a line for each that is not as it should be
    peak         the most bytes alive in the step; `evaluation` and `saving` in those
    work         FLOPs and kernels of the step
    collectives  of the step, in order; `rare` those of evaluation, save and load
    host         bytes that are left out of the peak, for they are in host memory
    stand_ins    what could not run as it is
    took         seconds and bytes that the rehearsal itself took
    """

    rank: int
    mesh: Mesh
    held: dict[str, tuple[int, ...]]
    wrong: list[str]
    peak: Peak
    evaluation: int
    saving: int
    work: Work
    collectives: list[Collective]
    rare: list[Collective]
    host: int
    stand_ins: list[str]
    took: tuple[float, int]


def rehearse_rank(part: Part) -> RankReport:
    """Builds the rank's engine, takes two steps, an evaluation step, and saves and loads its state.

    The process must have no process groups. Raises UserError for a run that cannot be.
    """
    config, repeated = _few_micro_batches(part.config)
    began = time.process_time()
    card = CARDS[part.card] if part.card else None
    place = mesh_of(config.parallel, part.world, part.rank)
    with one_rank(config.parallel, part.world, part.rank, card) as (mesh, recorder):
        engine = build_engine(
            config.model,
            config.train,
            config.parallel,
            mesh,
            fake_device(),
            precision=config.precision,
            batch=config.train.batch,
            accumulate=config.train.accumulate,
        )
        memory = recorder.memory
        name_modules(engine.model)
        held = {name: _shape(p) for name, p in engine.model.named_parameters()}
        states = "host" if config.parallel.offload_optimizer else "states"
        _mark_states(engine, memory, states)
        _follow_phases(engine, memory)
        samples = micro_batch_size(config.train.batch, config.train.accumulate, mesh.data)
        batch = _batch(config.model, samples)
        memory.mark(batch, "inputs")
        start, marks = 0, []
        with recorded_collectives(mesh, recorder) as log:

            def micro_batches() -> Iterator[tuple[Tensor, Tensor]]:
                for _ in range(engine.accumulate):
                    marks.append((recorder.work(), len(log)))
                    yield batch

            for _ in range(STEPS):
                recorder.restart()
                log.clear()
                marks.clear()
                memory.enter("forward")
                start = memory.now()
                train_step(engine, micro_batches())
                memory.enter("between steps")
                _mark_states(engine, memory, states)
            stop, collectives, work = memory.now(), list(log), recorder.work()
            if repeated:
                (before, first), (after, last) = marks[1:3]
                work = work.plus(after.minus(before), repeated)
                collectives[first:first] = collectives[first:last] * repeated
            log.clear()
            evaluation, saving = _evaluate(engine, config, memory), _save_and_load(engine, memory)
    without = "host" if card else None  # without a card it is the device's memory
    return RankReport(
        rank=part.rank,
        mesh=place,
        held=held,
        wrong=wrongly_held(config.model, place, held),
        peak=memory.peak(start, stop, without),
        evaluation=memory.peak(*evaluation, without).bytes,
        saving=memory.peak(*saving, without).bytes,
        work=work,
        collectives=collectives,
        rare=list(log),
        host=memory.bytes_of("host"),
        stand_ins=_stand_ins(config, part),
        took=(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10),
    )


def _few_micro_batches(config: RunConfig) -> tuple[RunConfig, int]:
    """The config with at most FEW micro-batches of the same size, and how often the second has to count in
    addition: all between the first and the last do the same."""
    train = config.train
    repeated = max(0, train.accumulate - FEW)
    if not repeated:
        return config, 0
    few = {"accumulate": FEW, "batch": train.batch // train.accumulate * FEW}
    return config.model_copy(update={"train": train.model_copy(update=few)}), repeated


def _shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # whole, where ZeRO-3 has partitioned it


def _mark_states(engine: Engine, memory: Allocations, kind: str) -> None:
    """Marks the weights, and master weights and moments as of this kind."""
    optimizer: Any = engine.optimizer  # pyright: ignore[reportAttributeAccessIssue]
    weights = [getattr(p, "ds_tensor", p) for p in engine.model.parameters()]
    memory.mark(weights, "weights")
    ours = {each.untyped_storage()._cdata for each in weights}
    inner = getattr(optimizer, "optimizer", optimizer)
    states = [p for group in inner.param_groups for p in group["params"]]
    states += [t for own in inner.state.values() for t in own.values() if isinstance(t, Tensor)]
    kept = [t for t in states if t.untyped_storage()._cdata not in ours]
    memory.mark(kept, kind)


def _follow_phases(engine: Any, memory: Allocations) -> None:
    backward, update = engine.backward, engine.update

    def follow_backward(loss: Tensor) -> None:
        memory.enter("backward")
        backward(loss)
        memory.enter("forward")

    def follow_update(votes: Tensor | None = None) -> Any:
        memory.enter("update")
        return update(votes)

    engine.backward, engine.update = follow_backward, follow_update


def _batch(model: ModelConfig, samples: int) -> tuple[Tensor, Tensor]:
    if isinstance(model, GPTConfig):
        ids, targets = (torch.zeros(samples, model.tokens, dtype=torch.long) for _ in range(2))
        return ids, targets
    return torch.zeros(samples, model.channels, *model.image_shape), torch.zeros(samples, dtype=torch.long)


def _evaluate(engine: Engine, config: RunConfig, memory: Allocations) -> tuple[int, int]:
    task = LanguageModel() if isinstance(config.model, GPTConfig) else Classification()
    memory.enter("evaluation")
    start = memory.now()
    engine.evaluate(_batch(config.model, config.train.evaluate_batch), task.sums)
    return start, memory.now()


def _save_and_load(engine: Engine, memory: Allocations) -> tuple[int, int]:
    memory.enter("save and load")
    start = memory.now()
    state = engine.state()
    stop = memory.now()  # a real load comes from files into an engine without moments: its peak is another
    if not state["parameters"]:  # under ZeRO only the first replica gives them, and all read them
        shapes = {name: _shape(p) for name, p in engine.model.named_parameters()}
        names = ("weight", *MOMENTS)
        state["parameters"] = {
            name: {each: torch.empty(own) for each in names} for name, own in shapes.items()
        }
    engine.check_state(state)
    engine.load_state(state)
    return start, stop


def _stand_ins(config: RunConfig, part: Part) -> list[str]:
    used = {
        "card": part.card is not None,
        "autocast": part.card is not None
        and config.precision == "bf16"
        and config.parallel.engine == "torch",
        "compiled": "compiled=True" in repr(config.model),
        "deepspeed": config.parallel.engine == "deepspeed",
        "host": config.parallel.offload_optimizer or config.parallel.activations == "block_cpu",
    }
    return [STAND_INS[name] for name, here in used.items() if here]
