"""Whether a process has the GPU that its job asked for."""

import os
import socket
from pathlib import Path

from parallel.errors import UserError


def check_devices(gpus_per_node: int | None, config: Path) -> None:
    """Raise UserError, naming this host, if the job asked for GPUs and torch sees none here.

    Unless the run's config says `device: cpu`: `auto` would train on the CPU without a word.
    """
    if not gpus_per_node:
        return
    from trainer.config.run import load_config

    if load_config(config, []).device == "cpu":
        return
    import torch

    if torch.cuda.is_available():
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "is not set" if visible is None else f"is {visible!r}"
    raise UserError(
        f"{socket.gethostname()}: gpus_per_node={gpus_per_node}, but torch {torch.__version__} "
        f"sees no CUDA device (CUDA_VISIBLE_DEVICES {shown}); look at nvidia-smi there, leave the host out "
        "with --exclude, or train on CPUs with device=cpu"
    )
