"""Share of a training step that loading text takes: `translution bench data` on prepared text."""

import json
import time
from pathlib import Path
from statistics import median

import torch

from models import GPTConfig, build_model
from models.mixers.attention import AttentionConfig
from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import TorchEngine
from trainer.data.feed import on_device
from trainer.data.prepare.output_folder import MANIFEST
from trainer.data.text.datasets import OpenWebTextConfig
from trainer.data.text.manifest import read_manifest
from trainer.reporting.table import Table
from trainer.train import train_step

_BATCH = 16
_TOKENS = 160
_WARMUP_STEPS, _STEPS = 1, 2


def holds_text(path: Path) -> bool:
    """Whether `translution prepare openwebtext` wrote this folder."""
    try:
        return "tokenizer" in json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False


def bench_text(path: Path, seconds: float) -> Table:
    """Tokens per second from the shards in `path`, and the share of loading in a training step.

    The net is the paper's smallest and fastest language net, self-attention with 22 M parameters on
    160 tokens, on this machine's device; with any other net the share is smaller. Raises UserError
    for a folder that cannot be used.
    """
    mixer = AttentionConfig(kind="attention", heads=3, head_dim=64)
    vocabulary = read_manifest(path).tokenizer.vocabulary
    model = GPTConfig.model_validate({"vocabulary": vocabulary, "tokens": _TOKENS, "mixer": mixer})
    source = OpenWebTextConfig(path=path).build(model, 0)
    on_gpu = torch.cuda.is_available()
    device, precision = (torch.device("cuda"), "bf16") if on_gpu else (torch.device("cpu"), "fp32")
    engine = TorchEngine(build_model(model), OptimizerConfig.model_validate({}), device, precision)
    batches = on_device(source.train_batches(0, _BATCH), source, device)
    load_seconds, step_seconds = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        next(batches)
        load_seconds.append(time.perf_counter() - start)
    for _ in range(_WARMUP_STEPS + _STEPS):
        batch = next(batches)
        start = time.perf_counter()
        train_step(engine, [batch]).loss.item()
        step_seconds.append(time.perf_counter() - start)
    load, step = median(load_seconds), median(step_seconds[_WARMUP_STEPS:])
    table = Table(f"{path}: batches of {_BATCH} sequences of {_TOKENS} tokens on {device.type}")
    table.put("loading", "tokens/s", f"{_BATCH * _TOKENS / load:,.0f}")
    table.put("loading", "ms per batch", f"{1e3 * load:,.3f}")
    table.put("whole step", "tokens/s", f"{_BATCH * _TOKENS / (load + step):,.0f}")
    table.put("whole step", "ms per batch", f"{1e3 * (load + step):,.3f}")
    table.put("loading's share", "ms per batch", f"{load / (load + step):.2%}")
    return table
