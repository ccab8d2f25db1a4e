"""Training, from a config to a result. Start reading here: `train`, `train_net`, `train_step`."""

import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parallel.engine.interface import Engine, StepResult
from parallel.errors import RankFailure, UserError
from parallel.host.binding import bind_to_cores
from parallel.mesh import Mesh, join_mesh
from parallel.processes import (
    abandon_processes,
    join_processes,
    leave_processes,
    raise_if_any_failed,
    rank,
    run_on_first_rank,
)
from parallel.rank_failure import explain_rank_failures
from parallel.sharding.replicas import differing_replica
from trainer.config.run import RunConfig, flat_values
from trainer.data.feed import on_device
from trainer.data.sampling import Stream, random_bits
from trainer.data.source import Batch, Source
from trainer.errors import Interrupted, resume_hint
from trainer.evaluation import evaluate
from trainer.faults.fault_log import noting_faults
from trainer.faults.watchdog import Watchdog
from trainer.init_from import load_weights
from trainer.reporting.clock import StepClock
from trainer.reporting.recorder import Recorder
from trainer.run_directory.restoring import restore
from trainer.run_directory.run_directory import RunDirectory, new_run_path
from trainer.setup import Setup, build_engine, open_run, set_up
from trainer.signals import StopRequest
from trainer.study import result_table, train_study


def train(
    config_path: str | None,
    overrides: list[str],
    resume: Path | None = None,
    requeued: bool = False,
    bind: bool = False,
) -> Path:
    """Start a run, or resume the one in `resume`, and print its results; returns the run directory.

    With `resume` and no config the run's own is read; overrides apply in both cases. With `requeued`,
    for jobs that a scheduler may start several times: resume from the config's run_dir if it has a
    checkpoint; otherwise start over. With `bind` this process keeps to the cores next to its device. Raises
    UserError for a user's mistake, before training starts, and Interrupted when a signal stopped the run.
    """
    setup, failure = None, None
    try:
        setup = set_up(config_path, overrides, resume)
    except UserError as error:
        failure = error  # perhaps on this rank only; raise_if_any_failed stops the others
    if bind and setup:
        bind_to_cores(setup.device)
    join_processes(
        setup.device if setup else torch.device("cpu"),
        group_of_one=setup is not None and setup.uses_deepspeed(),
        timeout=setup.config.parallel.timeout if setup else 600,
    )
    try:
        with explain_rank_failures():
            raise_if_any_failed(failure)
            assert setup is not None
            path = _train(setup, resume, requeued)
    except (UserError, Interrupted, SystemExit):  # on all ranks alike
        leave_processes()
        raise
    except BaseException:
        abandon_processes()
        raise
    leave_processes()
    return path


def _train(setup: Setup, resume: Path | None, requeued: bool) -> Path:
    """The rest of `train`, once the ranks are connected."""
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (only rank 0 prints)
    config = setup.config
    mesh = join_mesh(setup.members[0].config.parallel, flat_values(config))
    path = run_on_first_rank(lambda: resume or config.run_dir or new_run_path(config.name))
    run = RunDirectory(path)
    resumed = run_on_first_rank(lambda: open_run(setup, run, resume is not None, requeued))
    print(f"run directory: {path}", flush=True)
    with StopRequest() as stop, noting_faults(path), explain_rank_failures(resume_hint(path)):
        try:
            if config.study:
                table = train_study(setup, run, mesh, stop, train_net)
            else:
                result = train_net(config, setup.sources[0], run, mesh, stop, resumed)
                table = result_table(config, setup.members, setup.sources, [result])
        except Interrupted as interrupted:
            print(f"{interrupted}{resume_hint(path)}", flush=True)
            raise
    table.show()
    return path


def train_net(
    config: RunConfig, source: Source, run: RunDirectory, mesh: Mesh, stop: StopRequest, resume: bool
) -> dict[str, Any]:
    """Train one net to its last step, evaluate it, and return (and write) its result.

    The run directory exists; with `resume` training continues from its newest checkpoint, else it begins
    with fresh weights or those of `train.init_from`. Raises
    Interrupted, after saving, when `stop` is requested, and UserError when the loss stays not finite or
    something cannot be written.
    """
    run.ownership.claim()
    engine, samples = build_engine(config, mesh), 0
    if resume:
        samples = restore(engine, run, config)
        print(f"going on from step {engine.steps_done}", flush=True)
        run.forget_after(engine.steps_done)
        run.save_config(config)
    elif config.train.init_from:
        load_weights(engine, run, config)
    train = config.train

    def feed_from(sample: int) -> closing[Generator[Batch, None, None]]:
        batches = source.train_batches(sample, train.batch, train.accumulate, mesh.data_rank, mesh.data)
        return closing(on_device(batches, source, engine.device, training=True))

    with (
        Watchdog(train.watchdog, run.path) as watchdog,
        Recorder(config, run, source, engine, samples, stop, watchdog) as recorder,
        ExitStack() as feed,
    ):
        micro_batches = feed.enter_context(feed_from(samples))
        clock = recorder.clock

        def due(every: int | None) -> bool:
            done = engine.steps_done
            return every is not None and done % every == 0 and done < train.steps

        def evaluate_now() -> None:
            recorder.log()
            with clock.host_phase("evaluation"):
                evaluation = evaluate(engine, source, train.evaluate_batch, stop, watchdog)
            if not stop.number:
                recorder.add_evaluation(evaluation)

        if samples and due(train.evaluate_every):
            evaluate_now()  # a resumed run repeats the evaluation of its checkpoint's step
        while engine.steps_done < train.steps and not stop.number:
            _seed_dropout(config.seed, engine)
            with recorder.watching_step():
                result = train_step(engine, _fetch(micro_batches, engine.accumulate, recorder), stop, clock)
            recorder.add(result)
            if recorder.must_go_back:  # to the last checkpoint, but on with the data that comes next
                recorder.check_way_back()
                restore(engine, run, config)
                recorder.went_back()
                feed.close()
                micro_batches = feed.enter_context(feed_from(recorder.samples))
                continue
            if due(train.check_every):
                _check_replicas(engine, run.path)
            if due(train.checkpoint_every):
                recorder.save()
            if due(train.evaluate_every):
                evaluate_now()
            if due(train.pictures_every):
                recorder.draw()
        recorder.save()
        if not stop.number:
            evaluate_now()
        if stop.number:
            raise Interrupted(stop.number, engine.steps_done)
    return recorder.finish()


def train_step(
    engine: Engine,
    micro_batches: Iterable[tuple[Tensor, Tensor]],
    stop: StopRequest | None = None,
    clock: StepClock | None = None,
) -> StepResult:
    """One optimizer step over `engine.accumulate` micro-batches, (inputs, targets) on its device.

    In it this rank also tells the others whether it was asked to `stop`; `clock` times its phases.
    """
    clock = clock or StepClock(engine.device)
    engine.net.train()
    for inputs, targets in micro_batches:  # fetch
        with clock.phase("forward"), engine.autocast():
            loss = engine.net(inputs, targets)  # forward: `loss` of ViT or GPT in models/transformer.py
        with clock.phase("backward"):
            engine.backward(loss)  # add to the gradients
    votes = stop.votes(engine.device) if stop else None
    with clock.phase("optimizer"):
        return engine.update(votes)  # average over replicas, clip, AdamW


def _fetch(micro_batches: Iterator[Batch], count: int, recorder: Recorder) -> Iterator[Batch]:
    """The `count` micro-batches of one step, each on the device when the step asks for it."""
    for _ in range(count):
        with recorder.timing_data():
            micro_batch = next(micro_batches)
        yield micro_batch


def _check_replicas(engine: Engine, run_dir: Path) -> None:
    """Raises RankFailure on all ranks when weights that should be equal are not."""
    found = differing_replica(engine.model, engine.mesh)
    if found:
        raise RankFailure(
            f"parameter {found}, which should hold the same: a fault of its memory or device, or a bug"
            f"{resume_hint(run_dir)}",
            reports=rank() == 0,
            fault="drift",
        )


def _seed_dropout(seed: int, engine: Engine) -> None:
    """Dropout depends on the step and the data rank alone: a resume or an evaluation does not change it."""
    counter = np.array([engine.steps_done * engine.mesh.data + engine.mesh.data_rank])
    torch.manual_seed(int(random_bits(seed, Stream.DROPOUT, counter)[0] >> 1))
