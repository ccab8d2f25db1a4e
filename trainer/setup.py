"""Before training: read and check the config, pick the device, build the engine, open the run directory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from parallel.engine import build
from parallel.engine.interface import Engine
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig, mesh_of
from parallel.processes import own_device, world_size
from trainer.config.errors import ConfigError
from trainer.config.numerics import set_numerics
from trainer.config.run import RunConfig, load_config
from trainer.config.study import Member, run_members
from trainer.data.source import Source
from trainer.init_from import find_weights
from trainer.reporting.loggers.config import check_installed
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.run_directory import RunDirectory


@dataclass(frozen=True)
class Setup:
    """A run, resolved and checked for this job's processes; `set_up` makes it once.

    `members` are the nets of its study, or its only net; `sources` their data.
    """

    config: RunConfig
    device: torch.device
    members: list[Member]
    sources: list[Source]

    def uses_deepspeed(self) -> bool:
        return any(member.config.parallel.engine == "deepspeed" for member in self.members)


def set_up(
    config_path: str | None, overrides: list[str], resume: Path | None, world: int | None = None
) -> Setup:
    """Read the config of a training command and check everything that a user can get wrong.

    With `resume` and no config the run's own is read; overrides apply in both cases. Every rank does
    this on its own, before the processes connect. `world`: for so many processes in place of this job's.
    Raises UserError.
    """
    if resume is not None:
        config = read_run_config(resume, overrides, config_path)
    elif config_path is not None:
        config = load_config(config_path, overrides)
    else:
        raise UserError("no config: name a file, as in configs/debug.yaml, or give --resume RUN_DIR")
    return checked_setup(config, resume or config.run_dir, world)


def checked_setup(config: RunConfig, root: Path | None, world: int | None = None) -> Setup:
    """The nets of a config and their data, all checked for `world` processes, by default this job's.

    `root` is the run directory, where there may be one already. Raises UserError.
    """
    device = pick_device(config)
    set_numerics(config.tf32, config.deterministic)
    members = run_members(config)
    meshes = [check_net(member.config, world) for member in members]
    for member in members:
        _check_origin(member, root)
    for member, mesh in zip(members, meshes, strict=True):
        if mesh != meshes[0]:
            raise ConfigError(
                f"study: {member.config.name} would train on {mesh}, {members[0].config.name} on "
                f"{meshes[0]}; the nets of a study share one mesh"
            )
    for member in members:
        check_installed(member.config.train.loggers)
    sources = [member.config.build_source() for member in members]
    for member, source in zip(members, sources, strict=True):
        train = member.config.train
        source.train_batches(0, train.batch, train.accumulate, 0, meshes[0].data)  # raises UserError
    return Setup(config, device, members, sources)


def _check_origin(member: Member, root: Path | None) -> None:
    """Raises UserError where `train.init_from` has no weights for this net, unless it will resume its own."""
    started = root is not None and checkpoints(RunDirectory(member.path(root)).checkpoints)
    if member.config.train.init_from and not started:
        find_weights(member.config)


def read_run_config(run_dir: Path, overrides: list[str], instead: str | None = None) -> RunConfig:
    """The config of the run in `run_dir`, or of the file `instead`; raises UserError where no run is."""
    own = RunDirectory(run_dir).config
    if not own.is_file():
        raise UserError(f"{run_dir}: not a run directory: it has no {own.name}")
    return load_config(instead or own, overrides)


def pick_device(config: RunConfig) -> torch.device:
    """The device that the config asks for; raises UserError when this machine has none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine has no usable CUDA device; use device=cpu")
    return torch.device("cpu") if config.device == "cpu" else own_device()


def check_net(config: RunConfig, world: int | None = None) -> Mesh:
    """The mesh on which `world` processes, by default this job's, train the config's net.

    Raises UserError when the net cannot be built, does not divide over the mesh, or cannot be trained
    with this batch and precision.
    """
    mesh = mesh_of(config.parallel, world or world_size())
    _check_pictures(config, mesh)
    build.check_trainable(
        config.model,
        config.parallel,
        mesh,
        precision=config.precision,
        batch=config.train.batch,
        accumulate=config.train.accumulate,
    )
    return mesh


def _check_pictures(config: RunConfig, mesh: Mesh) -> None:
    """Raises UserError for pictures of a net that no rank holds whole."""
    every, parallel = config.train.pictures_every, config.parallel
    divided = f"offset × tensor = {mesh.model}" if mesh.model > 1 else ""
    if parallel.engine == "deepspeed" and parallel.zero == 3:
        divided = "ZeRO-3"
    if every and divided:
        raise ConfigError(
            f"train.pictures_every={every}: with {divided} no rank holds a whole net; leave it out, and draw "
            "the checkpoints with: translution show RUN_DIR --out FOLDER"
        )


def build_engine(config: RunConfig, mesh: Mesh | None = None) -> Engine:
    """This process's part of the config's net, with freshly drawn weights, and its optimizer.

    Without a mesh, the whole net in this process, whatever the config's `parallel` section says.
    """
    return build.build_engine(
        config.model,
        config.train,
        config.parallel if mesh else ParallelConfig(),
        mesh or Mesh(),
        pick_device(config),
        precision=config.precision,
        seed=config.seed,
        batch=config.train.batch,
        accumulate=config.train.accumulate,
    )


def build_evaluator(config: RunConfig, mesh: Mesh | None = None) -> Engine:
    """This process's part of the config's net, to be evaluated only; without a mesh, the whole net.

    Always the torch engine, whose optimizer holds nothing before its first step.
    """
    mesh = mesh or Mesh()
    return build.build_engine(
        config.model,
        config.train,
        ParallelConfig(offset=mesh.offset, tensor=mesh.tensor),
        mesh,
        pick_device(config),
        precision=config.precision,
        seed=config.seed,
        batch=mesh.data,
    )


def open_run(setup: Setup, run: RunDirectory, resume: bool, requeued: bool) -> bool:
    """Create the run directory, or check that it can be resumed; returns whether to resume.

    A `requeued` run resumes if it can and otherwise starts over. Raises UserError for a new run in a
    directory that holds one, and for a run to resume that holds no checkpoint.
    """
    if requeued and not resume:
        resume = _resumable(setup, run)
    else:
        refuse_directory(setup, run, resume)
    if resume:
        run.clear_leftovers()
    else:
        run.create(setup.config, again=requeued)
    return resume


def refuse_directory(setup: Setup, run: RunDirectory, resume: bool) -> None:
    """Raises UserError for a new run in a directory that holds one, and where nothing can be resumed."""
    if not resume:
        run.refuse_second()
    elif not _resumable(setup, run):
        what = "net of this study to resume" if setup.config.study else "checkpoint to resume from"
        raise UserError(f"{run.path}: holds no {what}")


def _resumable(setup: Setup, run: RunDirectory) -> bool:
    if setup.config.study:
        return any(RunDirectory(m.path(run.path)).config.exists() for m in setup.members)
    return bool(checkpoints(run.checkpoints))
