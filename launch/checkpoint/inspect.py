"""`translution inspect`: the checkpoints of a run, what is in them, who wrote it, whether they are whole."""

from collections.abc import Iterator
from pathlib import Path

from parallel.checkpoint.blocks import Damaged
from parallel.checkpoint.catalogue import damages
from parallel.checkpoint.contents import Boxes, Contents, read_contents
from parallel.errors import UserError
from trainer.run_directory.checkpoints import checkpoints, is_checkpoint
from trainer.run_directory.run_directory import RunDirectory


def inspect(path: Path, thorough: bool) -> Iterator[str]:
    """Lines on the checkpoints of a run, and on the tensors of the newest; or on one checkpoint.

    thorough   read every byte and compare its checksum; otherwise sizes and manifests only

    Raises UserError where there is no checkpoint.
    """
    found = [path] if is_checkpoint(path) else checkpoints(RunDirectory(path).checkpoints)
    if not found:
        raise UserError(f"{path}: holds no checkpoint")
    readable: Contents | None = None
    for checkpoint in found:
        try:
            contents = read_contents(checkpoint)
        except Damaged as damage:
            yield f"{checkpoint.name}  DAMAGED: {damage}"
            continue
        readable = contents
        index = contents.index
        wrong = list(damages(contents, thorough))
        state = "DAMAGED: " + "; ".join(wrong) if wrong else "whole" if thorough else "all files are there"
        mesh = " × ".join(f"{axis} {size}" for axis, size in index.mesh.items())
        yield (
            f"{checkpoint.name}  {index.samples:,} samples  {contents.bytes:,} bytes  "
            f"{mesh}  {index.run.get('versions', {}).get('translution', '')}  {state}"
        )
    if readable is not None:
        yield f"\ntensors of step {readable.index.step}:"
        yield from _tensors(readable)


def _tensors(contents: Contents) -> Iterator[str]:
    written: dict[str, list[Boxes]] = {}
    for manifest in contents.manifests:
        for boxes in manifest.boxes:
            written.setdefault(boxes.name, []).append(boxes)
    shapes = {**contents.index.parameters, **contents.index.buffers}
    width = max(map(len, shapes), default=0)
    for name, shape in shapes.items():
        own = written.get(name, [])
        kinds = ", ".join(dict.fromkeys(boxes.kind for boxes in own)) or "nothing"
        ranks = sorted({int(boxes.file.split(".")[0].removeprefix("rank-")) for boxes in own})
        yield f"{name:{width}}  {list(shape)!s:20}  {kinds}  by {_runs(ranks)}"


def _runs(ranks: list[int]) -> str:
    """[0, 1, 2, 5] → "ranks 0–2, 5"."""
    runs: list[list[int]] = []
    for number in ranks:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}" if ranks else "no rank"
