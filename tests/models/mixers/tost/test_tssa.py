"""Token statistics: what the definition says of single heads, first tokens and small numbers."""

import torch

from models import TokenGrid
from models.mixers.tost.tssa import TokenStatistics


def test_one_head_holds_every_token_wholly():
    torch.manual_seed(0)
    mixer = TokenStatistics(6, TokenGrid((3, 3)), heads=1).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    w = mixer.w(x)
    moment = w.square().sum(1, keepdim=True) / (9 + 1e-8)  # all memberships are 1
    assert torch.allclose(mixer(x), mixer.out(-w / (1 + moment)), atol=1e-12)


def test_the_causal_form_is_not_the_other_form_of_a_prefix():
    torch.manual_seed(0)
    causal = TokenStatistics(6, TokenGrid((5,), causal=True), heads=2).double()
    still = TokenStatistics(6, TokenGrid((1, 5)), heads=2).double()
    still.load_state_dict(causal.state_dict(), strict=False)
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    assert torch.allclose(causal(x)[:, :1], still(x[:, :1]), atol=1e-7)  # of one token they agree
    assert not torch.allclose(causal(x)[:, -1], still(x)[:, -1], atol=1e-3)


def test_a_share_near_one_has_a_small_gradient_also_in_float32():
    """Of own/(own + before) as a quotient, it would be the difference of two large numbers."""
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        mixer = TokenStatistics(4, TokenGrid((2,), causal=True), heads=2).to(dtype)
        torch.nn.init.eye_(mixer.w.weight)
        torch.nn.init.zeros_(mixer.w.bias)
        torch.nn.init.eye_(mixer.out.weight)
        x = torch.tensor(
            [[[1.0, 3e-10, -0.5, 2e-10], [1.0, 3e-6, -0.7, 2e-6]]], dtype=dtype, requires_grad=True
        )
        (mixer(x) * torch.arange(8).view(1, 2, 4)).sum().backward()
        assert x.grad is not None
        gradients[dtype] = x.grad.double()
    assert torch.allclose(gradients[torch.float32], gradients[torch.float64], rtol=1e-4, atol=1e-4)
