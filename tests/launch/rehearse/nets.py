"""Small nets to rehearse and to run, and configs of them."""

from __future__ import annotations

from typing import Any

from trainer.config.run import RunConfig, parse_config

MIXER = {"kind": "translution", "heads": 2, "head_dim": 8}
ATTENTION = {"kind": "attention", "heads": 2, "head_dim": 8}
VIT = {
    "kind": "vit",
    "image_size": 16,
    "patch_size": 4,
    "classes": 10,
    "width": 16,
    "depth": 2,
    "mlp": 32,
    "mixer": MIXER,
}
GPT = {
    "kind": "gpt",
    "vocabulary": 50,
    "tokens": 12,
    "width": 16,
    "depth": 2,
    "mlp": 32,
    "mixer": MIXER,
}


def config(
    model: dict[str, Any], batch: int = 8, accumulate: int = 1, precision: str = "fp32", **parallel: Any
) -> RunConfig:
    """Of a run on the CPU with random data."""
    return parse_config(
        {
            "name": "small",
            "device": "cpu",
            "precision": precision,
            "model": model,
            "data": {"kind": "synthetic"},
            "train": {"batch": batch, "accumulate": accumulate, "evaluate_batch": 4},
            "parallel": parallel,
        }
    )


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"engine": "deepspeed", "zero": stage, **more}
