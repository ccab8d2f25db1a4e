"""Other systems in the terms of their public code: `build` runs our modules with weights of that code.

docs/relatives.md says which systems there are and what they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.relatives import attention, images, latents, positions, sequences, tokens
from models.relatives.adapter import Builder, Relative

SYSTEMS: dict[str, Builder] = {
    "self_attention": attention.self_attention,
    "rope1d_causal": attention.rope1d_causal,
    "rope2d": attention.rope2d,
    "vit_former_net": attention.vit_former_net,
    "tssa_vision": images.tssa_vision,
    "tost_block": images.tost_block,
    "class_attention": images.class_attention,
    "class_attention_block": images.class_attention_block,
    "tost_net": images.tost_net,
    "fourier_pos": images.fourier_pos,
    "xca": images.xca,
    "lpi": images.lpi,
    "xca_block": images.xca_block,
    "xcit_net": images.xcit_net,
    "bixt_cross": latents.bixt_cross,
    "bixt_cross_onesided": latents.bixt_cross_onesided,
    "bixt_block": latents.bixt_block,
    "bixt_net": latents.bixt_net,
    "tssa_causal": sequences.tssa_causal,
    "tost_causal_block": sequences.tost_causal_block,
    "tost_gpt": sequences.tost_gpt,
    "combiner_fixed": sequences.combiner("fixed"),
    "combiner_axial": sequences.combiner("axial"),
    "combiner_mixture": sequences.combiner("mixture"),
    "wkv": sequences.wkv,
    "rwkv_time_mix": sequences.rwkv_time_mix,
    "rwkv_channel_mix": sequences.rwkv_channel_mix,
    "rwkv_gpt": sequences.rwkv_gpt,
    "shaw": positions.shaw,
    "botnet": positions.botnet,
    "swin_bias": positions.swin_bias,
    "gpsa": positions.gpsa,
    "gpsa_at_init": positions.gpsa,
    "evit_block": tokens.evit_block,
    "evit_net": tokens.evit_net,
    "evit_schedule": tokens.evit_schedule,
    "dynamicvit_predictor": tokens.dynamicvit_predictor,
    "dynamicvit_masked_attention": tokens.dynamicvit_masked_attention,
    "dynamicvit_net": tokens.dynamicvit_net,
    "dpc_knn": tokens.dpc_knn,
    "decouple_merge_reconstruction": tokens.decouple_merge,
}


def build(
    system: str,
    cfg: Mapping[str, Any],
    param: Mapping[str, Tensor],
    buffer: Mapping[str, Tensor] | None = None,
) -> Relative:
    """A public system with weights by their public names; a thin layer over our modules.

    cfg      its options, pairs as lists
    param    its weights; gradients reach them
    buffer   its statistics; updated in place in training

    The result is called with inputs by name and gives outputs by name: `build("swin_bias", …)(x=x)["y"]`.
    Raises ValueError for an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system {system}: one of {', '.join(sorted(SYSTEMS))} is needed")
    return Relative(system, SYSTEMS[system], cfg, param, buffer)
