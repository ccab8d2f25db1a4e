"""How RWKV-4 begins."""

import torch

from models import GPTConfig, build_model
from models.initial import initial_values
from tests.recordings import Recording

NET = {
    "vocabulary": 40,
    "tokens": 8,
    "width": 6,
    "depth": 4,
    "mlp": 24,
    "mixer": {"kind": "rwkv"},
    "feed_forward": "rwkv",
    "embedding_norm": True,
    "initial": "rwkv",
}


def test_decays_bonuses_and_shares_begin_as_recorded_in_layer_1_of_4():
    with torch.device("meta"):
        values = initial_values(build_model(GPTConfig.model_validate(NET)))
    for system, ours in (("rwkv_time_mix", "layers.1.mixer."), ("rwkv_channel_mix", "layers.1.mlp.")):
        for name, wanted in Recording(f"{system}/a").group("init").items():
            found = values[ours + name.replace("time_mix_", "share_")](seed=0)
            assert torch.allclose(found, wanted, atol=1e-6), name


def test_matrices_begin_orthogonal_or_at_zero():
    with torch.device("meta"):
        values = initial_values(build_model(GPTConfig.model_validate(NET)))
    drawn = {name: value(seed=0) for name, value in values.items()}
    zero = ("mixer.key", "mixer.receptance", "mixer.out", "mlp.hidden.down", "mlp.receptance")
    assert all(not drawn[f"layers.0.{name}.weight"].any() for name in zero)

    def gain(name: str) -> torch.Tensor:
        weight = drawn[name]
        product = weight.T @ weight
        assert torch.allclose(product, product[0, 0] * torch.eye(6), atol=1e-5 * product[0, 0].item())
        return product[0, 0].sqrt()

    assert torch.isclose(gain("layers.0.mixer.value.weight"), torch.tensor(1.0))
    assert torch.isclose(gain("layers.0.mlp.hidden.up.weight"), torch.tensor(2.0))  # √(24/6)
    assert torch.isclose(gain("head.weight"), torch.tensor(0.5 * (40 / 6) ** 0.5))
    assert torch.isclose(gain("embedding.weight"), torch.tensor(1e-4 * 40**0.5))


def test_a_net_of_one_layer_begins_with_finite_numbers():
    with torch.device("meta"):
        values = initial_values(build_model(GPTConfig.model_validate({**NET, "depth": 1})))
    assert all(value(seed=0).isfinite().all() for value in values.values())
