"""Synthetic data fits any net and any number of ranks."""

import pytest
import torch

from models import GPTConfig, ViTConfig, build_model
from tests.trainer.data.text.test_windows import net
from trainer.data.synthetic import SyntheticConfig


@pytest.mark.parametrize("model", [net(), ViTConfig.model_validate({"image_size": 8, "patch_size": 4})])
def test_synthetic_data_fits_the_net_and_any_world_size(model: ViTConfig | GPTConfig):
    source = SyntheticConfig(test_samples=10).build(model, 0)
    whole = next(source.train_batches(6, 8))
    halves = [next(source.train_batches(6, 8, 1, rank, 2)) for rank in range(2)]
    assert torch.equal(whole.inputs, torch.cat([half.inputs for half in halves]))
    built = build_model(model)
    loss = built(*source.on_device(whole))
    assert loss.isfinite()
    for world in (1, 3):
        shares = [list(source.evaluation_batches("test", 4, rank, world)) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        sums = sum(source.task.sums(built, source.on_device(b)) for share in shares for b in share)
        assert isinstance(sums, torch.Tensor)
        assert sums[-1] == 10 * (1 if model.kind == "vit" else 5)


def test_rectangular_images_are_height_by_width():
    model = ViTConfig(image_size=(8, 20), patch_size=4, channels=2)
    batch = next(SyntheticConfig().build(model, 0).train_batches(0, 3))
    assert batch.inputs.shape == (3, 2, 8, 20)
    assert len(batch.inputs.unique()) > 200
