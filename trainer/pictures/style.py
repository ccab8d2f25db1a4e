"""The style of every picture, and how one becomes a PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = Path(__file__).with_name("translution.mplstyle")
MARKERS = ("o", "s", "^", "D", "v", "P")
FILLS = ("black", "white", "0.6", "0.85")


@contextmanager
def styled() -> Iterator[None]:
    """Around making and saving pictures; the user's own settings of Matplotlib have no part in them."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.style.use(_STYLE)
        yield


def png(figure: Figure) -> bytes:
    """The picture as a PNG file, the same bytes for the same picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
