"""`translution show`: draws runs, from their newest checkpoints and metrics, as PNG files and one page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from models.transformer import GPT, ViT
from parallel.errors import UserError
from trainer.atomic_write import atomic_write
from trainer.config.run import RunConfig
from trainer.data.feed import on_device
from trainer.data.source import Source
from trainer.errors import machine_error
from trainer.pictures.attention import draw_attention, draw_carried, weights
from trainer.pictures.banks import draw_banks, draw_shifts
from trainer.pictures.curves import draw_curves
from trainer.pictures.groups import draw_groups
from trainer.pictures.load import draw_load
from trainer.pictures.page import page
from trainer.pictures.style import png, styled
from trainer.run_directory.checkpoints import checkpoints
from trainer.run_directory.restoring import restore
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_engine, read_run_config

IMAGES = 4
Drawn = Iterator[tuple[str, Figure | None]]


def show(run_dirs: list[Path], out: Path, layer: int | None = None, head: int | None = None) -> list[Path]:
    """Draw runs into the folder `out`: a PNG for each picture, and index.html with all of them.

    `layer` and `head` choose from the pictures of weights. Raises UserError where no run is, and for a layer
    or head that a net does not have.
    """
    configs = {run: read_run_config(run, ["device=cpu"]) for run in run_dirs}
    for run, config in configs.items():
        if config.study:
            raise UserError(f"{run}: is a study; name the runs inside it, as {run}/*/")
    names = _names(run_dirs)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise machine_error(error, f"--out {out}", "be created") from None
    sections: dict[str, list[tuple[str, bytes]]] = {}
    written: list[Path] = []

    def add(section: str, file: str, drawn: Drawn) -> None:
        for caption, figure in drawn:
            if figure is None:
                continue
            picture = png(figure)
            path = out / f"{file}{caption.split(':')[0].replace(' ', '-')}.png"
            atomic_write(path, lambda new, picture=picture: new.write_bytes(picture))
            sections.setdefault(section, []).append((caption, picture))
            written.append(path)

    with styled():
        curves = draw_curves(dict(zip(names, run_dirs, strict=True)))
        add("Training", "", iter([("curves: loss and learning rate", curves)]))
        for name, (run, config) in zip(names, configs.items(), strict=True):
            prefix = f"{name}-" if len(configs) > 1 else ""
            add(name, prefix, _of_run(run, config, layer, head))
    if not written:
        raise UserError(f"{run_dirs[0]}: has neither steps nor a checkpoint to draw")
    title = ", ".join(names)
    index = out / "index.html"
    atomic_write(index, page(title, sections))
    return [*written, index]


def _of_run(run: Path, config: RunConfig, layer: int | None, head: int | None) -> Drawn:
    """The pictures of one run, each with a caption whose first words name its file."""
    yield "load: planned pairs, bank entries and bytes of each rank", draw_load(config)
    if not checkpoints(RunDirectory(run).checkpoints):
        return
    net, images = load_net(run, config)
    _check_layer(net, layer)
    yield from net_pictures(net, images, layer, head)


def load_net(run: Path, config: RunConfig) -> tuple[ViT | GPT, Tensor]:
    """The net of a run's newest checkpoint, whole and on the CPU, and a few inputs of its evaluation data."""
    engine = build_engine(config)
    restore(engine, RunDirectory(run), config, resumes=False)
    assert isinstance(engine.model, ViT | GPT)
    return engine.model, sample_inputs(config.build_source(), engine.device)


def sample_inputs(source: Source, device: torch.device) -> Tensor:
    """The first few inputs of the first evaluation set."""
    batches = source.evaluation_batches(next(iter(source.evaluations)), IMAGES)
    return next(iter(on_device(batches, source, device))).inputs[:IMAGES]


def net_pictures(net: ViT | GPT, inputs: Tensor, layer: int | None = None, head: int | None = None) -> Drawn:
    """The pictures of a net: banks, shifts, attention, offsets and groups of tokens, where it has them."""
    yield "banks: norms of the bank's matrices by offset", draw_banks(net, layer)
    yield "shifts: learned mixtures of shifts", draw_shifts(net, layer)
    alphas = weights(net, inputs, layer)
    for index, alpha_BHNN in alphas.items():
        if head is not None and head >= alpha_BHNN.shape[1]:
            raise UserError(f"--head {head}: layer {index} has heads 0 to {alpha_BHNN.shape[1] - 1}")
        if isinstance(net, ViT):
            yield f"attention {index}: of some queries", draw_attention(net, inputs[0], alphas, index, head)
    yield "offsets: which carry the weight", draw_carried(net, alphas, head)
    if isinstance(net, ViT):
        yield "tokens: kept, merged and dropped", draw_groups(net, inputs)


def _check_layer(net: ViT | GPT, layer: int | None) -> None:
    if layer is not None and layer >= len(net.layers):
        raise UserError(f"--layer {layer}: the net has layers 0 to {len(net.layers) - 1}")


def _names(run_dirs: list[Path]) -> list[str]:
    """A name for each run: that of its folder, with the folder above where two are alike."""
    names = [run.resolve().name for run in run_dirs]
    if len(set(names)) < len(names):
        names = [f"{run.resolve().parent.name}-{run.resolve().name}" for run in run_dirs]
    return names
