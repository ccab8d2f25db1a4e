"""The mathematics: nets and their token mixers. Knows nothing of ranks, files or clusters."""

from typing import Annotated

from pydantic import Field
from torch import nn

from models.gpt import GPT, GPTConfig
from models.mixers.attention import Attention
from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.vit import ViT, ViTConfig

ModelConfig = Annotated[ViTConfig | GPTConfig, Field(discriminator="kind")]

__all__ = [
    "GPT",
    "Attention",
    "GPTConfig",
    "ModelConfig",
    "OffsetGrid",
    "Translution",
    "ViT",
    "ViTConfig",
    "build_model",
]


def build_model(config: ModelConfig) -> nn.Module:
    """The net that a run's `model` section describes; under torch.device("meta") it takes no memory."""
    return config.build()
