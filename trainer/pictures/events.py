"""The pictures that a run adds to its TensorBoard events while it trains."""

from __future__ import annotations

from collections.abc import Iterator

from models.transformer import GPT, ViT
from parallel.engine.interface import Engine
from parallel.processes import rank
from trainer.data.source import Source
from trainer.pictures.show import net_pictures, sample_inputs
from trainer.pictures.style import png, styled


def picture_events(engine: Engine, source: Source) -> Iterator[tuple[str, bytes]]:
    """On rank 0, name and PNG of each picture of the engine's net, which this rank holds whole."""
    if rank():
        return
    net = engine.model
    assert isinstance(net, ViT | GPT)
    with styled(), engine.autocast():
        for caption, figure in net_pictures(net, sample_inputs(source, engine.device)):
            if figure is not None:
                yield f"pictures/{caption.split(':')[0].replace(' ', '_')}", png(figure)
