"""The small nets that `translution verify --net NAME` trains: one for every mixer, position and reducer.

Not for `random` and `dynamicvit`: like dropout they draw by the data rank, so that meshes differ.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from models import ModelConfig
from parallel.errors import UserError

# 5 × 5 tokens and a class token; heads, feed-forward and classes divide by up to eight ranks.
IMAGE: dict[str, Any] = {
    "kind": "vit",
    "image_size": 20,
    "patch_size": 4,
    "channels": 1,
    "classes": 10,
    "width": 32,
    "depth": 2,
    "mlp": 64,
}
PATCHES = IMAGE | {"pool": "mean"}  # without a class token
# With batch norms, a code of the grid, layer scales and class attention.
FRAME = IMAGE | {
    "stem": "convolutions",
    "position": "fourier",
    "layer_scale": 1.0,
    "pool": "class_attention",
    "class_attention": {"heads": 2},
}
TEXT: dict[str, Any] = {"kind": "gpt", "vocabulary": 40, "tokens": 16, "width": 32, "depth": 2, "mlp": 64}
ATTENTION = {"mixer": {"kind": "attention", "heads": 2, "head_dim": 16}}
LATE_CLASS_TOKEN = {"layers": 1, "position": "none", "class_token": True}
STRUCTURE = {"kind": "structure", "attention_heads": 2, "shift_heads": 4, "head_dim": 8, "reach": 2}

TRANSLUTION = {"mixer": {"kind": "translution", "heads": 2, "head_dim": 16}}


def reduced(reduce: dict[str, Any], first: dict[str, Any] = ATTENTION) -> dict[str, Any]:
    """Two layers, the first with a reducer."""
    stages = [first | {"layers": 1, "reduce": reduce}, ATTENTION | {"layers": 1}]
    return {"position": "learned", "stages": stages}


NETS: dict[str, dict[str, Any]] = {
    "translution": IMAGE | {"mixer": {"kind": "translution", "heads": 2, "head_dim": 16}},
    "attention": IMAGE | ATTENTION | {"position": "none"},
    "learned": IMAGE | ATTENTION | {"position": "learned"},
    "sinusoidal": IMAGE | ATTENTION | {"position": "sinusoidal"},
    "rope": IMAGE | ATTENTION | {"position": "rope"},
    "rope-text": TEXT | ATTENTION | {"position": "rope"},
    "tost": FRAME | {"mixer": {"kind": "tssa", "heads": 2}},
    "tost-text": TEXT | {"mixer": {"kind": "tssa", "heads": 2}, "layer_scale": 0.05, "tie_embeddings": True},
    "xcit": FRAME | {"mixer": {"kind": "xca", "heads": 2}, "local_patches": True},
    "bixt": IMAGE
    | {"mixer": {"kind": "bixt", "heads": 2}, "pool": "latents", "latents": 4, "stem": "projection"}
    | {"position": "fourier"},
    "combiner": PATCHES | {"mixer": {"kind": "combiner", "heads": 2, "segment": 5}},
    "combiner-text": TEXT | {"mixer": {"kind": "combiner", "heads": 2, "segment": 4}, "feed_forward": "relu"},
    "combiner-axial": TEXT | {"mixer": {"kind": "combiner", "form": "axial", "heads": 2, "segment": 4}},
    "combiner-mixture": TEXT | {"mixer": {"kind": "combiner", "form": "mixture", "heads": 2, "segment": 4}},
    "rwkv": TEXT
    | {"mixer": {"kind": "rwkv"}, "feed_forward": "rwkv", "embedding_norm": True, "initial": "rwkv"},
    "shaw": TEXT | ATTENTION | {"position": {"kind": "shaw", "max_distance": 5}},
    "botnet": PATCHES | ATTENTION | {"position": "botnet"},
    "swin": IMAGE | ATTENTION | {"position": "swin"},
    "swin-text": TEXT | ATTENTION | {"position": "swin"},
    "gpsa": IMAGE
    | ATTENTION
    | {"position": "learned", "stages": [{"layers": 1, "position": "gpsa"}, LATE_CLASS_TOKEN]},
    "evit": IMAGE | reduced({"kind": "evit", "keep": 0.6}),
    "decouple": IMAGE | reduced({"kind": "decouple", "keep": 0.6}, TRANSLUTION),
    "decouple-mean": PATCHES | reduced({"kind": "decouple", "keep": 0.6}, TRANSLUTION),
    "density_peaks": PATCHES | reduced({"kind": "density_peaks", "keep": 0.6}),
    "uniform": IMAGE | reduced({"kind": "uniform", "keep": 0.6}),
    "structure": PATCHES | {"mixer": STRUCTURE | {"every_shift": True, "reach": 1}},
    "structure-text": TEXT | {"mixer": STRUCTURE | {"factored": False}},
}


def net_named(name: str) -> ModelConfig:
    """The `model` section of a net; raises UserError for an unknown name."""
    if name not in NETS:
        raise UserError(f"--net {name}: one of {', '.join(NETS)}, or all")
    return TypeAdapter(ModelConfig).validate_python(NETS[name])
