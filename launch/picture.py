"""The picture of a finished run or study, and what a person may want to do next (`train --picture`)."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer.config.run import RunConfig, load_config
from trainer.config.study import Member, run_members
from trainer.pictures.curves import smooth
from trainer.run_directory.run_directory import RunDirectory, new_run_path
from trainer.study import SEED

PICTURE, EXAMPLE = "results.png", "example.png"


def name_run(config: str | None, overrides: list[str], resume: Path | None) -> tuple[Path | None, list[str]]:
    """The directory that a run will have, and the overrides that say so."""
    if resume is not None or config is None:
        return resume, overrides
    own = load_config(config, overrides)
    path = own.run_dir or new_run_path(own.name)
    return path, [*overrides, f"run_dir={path}"]


def show_next(path: Path) -> None:
    """Draw the picture of the finished run in `path`; print where it is and what to do next."""
    print(f"\npicture: {draw_run(path)}\nnext:")
    for command in next_commands(path):
        print(f"  {command}")


def draw_run(path: Path) -> Path:
    """Draw the loss curves and the results of every net in `path`, and return the picture's file."""
    from trainer.pictures.style import styled  # here, because Matplotlib takes long to import

    with styled():
        return _draw_run(path)


def _draw_run(path: Path) -> Path:
    from matplotlib.figure import Figure

    members = run_members(load_config(RunDirectory(path).config, []))
    figure = Figure(figsize=(9, 3.2))
    curves, bars = figure.subplots(1, 2)
    results: dict[str, list[dict[str, Any]]] = {}
    for member in members:
        run, label = RunDirectory(member.path(path)), _label(member)
        points = [(r["step"], r["loss"]) for r in run.read_metrics() if "loss" in r]
        colour = f"C{list(results).index(label) if label in results else len(results)}"
        steps, losses = zip(*points, strict=True) if points else ((), ())
        curves.plot(steps, smooth(list(losses)), color=colour, label=None if label in results else label)
        results.setdefault(label, []).append((run.read_result() or {}).get("evaluation", {}))
    curves.set(xlabel="step", ylabel="training loss, smoothed")
    curves.legend()
    _draw_bars(bars, results, members[0].config)
    file = path / PICTURE
    figure.savefig(file)
    return file


def next_commands(path: Path) -> list[str]:
    """Three commands to go on with: try a net, see its curves, look at all runs."""
    member = run_members(load_config(RunDirectory(path).config, []))[0]
    net = member.path(path)
    if member.config.model.kind == "gpt":
        trial = f'translution generate {net} --prompt "Once"'
    else:
        trial = f"translution predict {net} {_example(member.config, path) or 'IMAGE'}"
    return [trial, f"tensorboard --logdir {path}", f"translution runs {path.parent}"]


def _label(member: Member) -> str:
    """The values of its study but for the seed, which averages."""
    parts = [
        member.title(key) or label
        for key, label in zip(member.values, member.labels, strict=True)
        if key != SEED
    ]
    return ", ".join(parts) or member.config.name


def _draw_bars(axes: Any, results: dict[str, list[dict[str, Any]]], config: RunConfig) -> None:
    """The mean of the nets of each label, in the first metric that is not the loss, by evaluation set."""
    sets = list(dict.fromkeys(name for nets in results.values() for net in nets for name in net))
    metrics = [metric for nets in results.values() for net in nets for own in net.values() for metric in own]
    metric = next((each for each in metrics if each != "loss"), "loss")
    for number, nets in enumerate(results.values()):
        for place, name in enumerate(sets):
            values = [net[name][metric] for net in nets if name in net]
            if values:
                left = place + (number - (len(results) - 1) / 2) * 0.8 / len(results)
                mean = sum(values) / len(values)
                axes.bar(left, mean, 0.75 / len(results), color=f"C{number}")
                axes.text(left, mean, f"{mean:.3g}", ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(sets)), sets)
    axes.set(ylabel=metric, title=f"after {config.train.steps} steps")


def _example(config: RunConfig, path: Path) -> Path | None:
    """A test image of bundled or downloaded digits, written beside the picture."""
    if config.data.kind != "moving_mnist":
        return None
    source = config.build_source()
    batch = next(source.evaluation_batches(next(iter(source.evaluations)), 1))
    pixels = batch.inputs[0, 0]
    assert pixels.dtype == torch.uint8
    Image.fromarray(pixels.numpy()).save(path / EXAMPLE)
    return path / EXAMPLE
