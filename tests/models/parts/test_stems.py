"""Stems give as many tokens as their grid says, and odd sizes are rounded up where convolutions do."""

import pytest
import torch

from models import ViTConfig, build_model

BASE = {
    "classes": 5,
    "width": 16,
    "depth": 1,
    "mlp": 16,
    "mixer": {"kind": "xca", "heads": 2},
    "pool": "mean",
}


@pytest.mark.parametrize(
    ("stem", "image", "patch", "grid"),
    [
        ("convolutions", [33, 47], 16, (3, 3)),
        ("convolutions", 24, 8, (3, 3)),
        ("projection", [24, 32], [8, 16], (3, 2)),
        ({"kind": "projection", "stride": 4}, 24, 8, (6, 6)),
        ({"kind": "projection", "stride": 4}, 24, 16, (6, 6)),
        ("patches", [24, 32], 8, (3, 4)),
    ],
)
def test_a_stem_gives_the_tokens_of_its_grid(stem, image, patch, grid):
    config = ViTConfig.model_validate(BASE | {"stem": stem, "image_size": image, "patch_size": patch})
    assert config.grid == grid
    net = build_model(config)
    images = torch.randn(2, 3, *config.image_shape)
    assert net.patch_embedding(images).shape == (2, grid[0] * grid[1], 16)
    assert net(images).shape == (2, 5)
