"""The mathematics: nets and their token mixers. Knows nothing of ranks, files or clusters."""

from models.mixers.attention import Attention
from models.mixers.interface import Mixer, MixerConfig
from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.pretrained.weights import load_pretrained
from models.tokens import TokenGrid
from models.transformer import GPT, GPTConfig, ModelConfig, ViT, ViTConfig, build_model

__all__ = [
    "GPT",
    "Attention",
    "GPTConfig",
    "Mixer",
    "MixerConfig",
    "ModelConfig",
    "OffsetGrid",
    "TokenGrid",
    "Translution",
    "ViT",
    "ViTConfig",
    "build_model",
    "load_pretrained",
]
