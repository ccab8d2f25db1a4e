"""Replace a file so that a reader sees the old one or the new one, never a part of either."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from trainer.errors import machine_error


def atomic_write(
    path: Path,
    content: str | Callable[[Path], object],
    *,
    durable: bool = False,
    doing: str = "be written",
) -> None:
    """Write `content`, text or a function that fills the file it is given, beside `path`, then rename.

    durable   survive a power cut too: flush to the disk before the rename
    doing     completes the error's "PATH: cannot …"

    Raises UserError where the file system refuses; other errors of `content` pass. Nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    try:
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            content(temporary)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise machine_error(error, path, doing) from None
    finally:
        temporary.unlink(missing_ok=True)
