"""How much each token is read, from the operator's own weights: against the softmax of all pairs."""

import pytest
import torch
from torch import Tensor

from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.ops.naive import per_pair, softmax_weights

CASES = {
    "class token": ((3, 4), True, {}),
    "class token, shared key": ((3, 2), True, {"relative": "qv"}),
    "class token, narrow": ((3, 2), True, {"rank": 2}),
    "mean": ((3, 4), False, {}),
    "mean, shared query": ((4, 2), False, {"relative": "kv"}),
    "mean, kept": ((2, 3), False, {"memory": "keep"}),
    "mean, narrow": ((3, 3), False, {"rank": 2}),
    "mean, bands": ((4, 4), False, {"share": "log(1.5)"}),
}


def weights(mixer: Translution, x_BNC: Tensor) -> Tensor:
    """α[B, i, j, H] by the equations of section 3."""
    entry, heads = mixer.grid.table, mixer.heads

    def pair(name: str, token: str, narrow: bool = False) -> Tensor:
        rows = mixer.get_submodule(f"{name}_down")(x_BNC) if narrow else x_BNC
        if hasattr(mixer, f"{name}_bank") and (narrow or mixer.rank is None):
            W = mixer.get_parameter(f"{name}_bank")
        else:
            W = torch.eye(rows.shape[2]).to(rows) if narrow else mixer.get_parameter(f"{name}.weight").T
        return per_pair(rows, W, entry, token).unflatten(-1, (heads, -1))

    a = (pair("q", "i") * pair("k", "j")).sum(-1)
    if mixer.rank is not None:
        a = (a + (pair("q", "i", True) * pair("k", "j", True)).sum(-1)) / 2
    return softmax_weights(a / mixer.head_dim**0.5, entry)


@pytest.mark.parametrize(("shape", "first", "options"), CASES.values(), ids=CASES)
def test_importance_and_its_gradients_are_those_of_the_softmax_of_all_pairs(shape, first, options):
    torch.manual_seed(0)
    options = dict(options)
    grid = OffsetGrid(shape, class_token=first, share=options.pop("share", "none"))
    mixer = Translution(6, grid, 2, 3, **options).double()
    mixer.importance = "class" if first else "received"
    x = torch.randn(2, grid.num_tokens, 6, dtype=torch.float64, requires_grad=True)
    y, importance = mixer(x)
    of_y, of_importance = torch.randn_like(y), torch.randn_like(importance)
    leaves = [x, *mixer.parameters()]
    found = torch.autograd.grad([y, importance], leaves, [of_y, of_importance])

    mixer.importance = None
    plain, alpha = mixer(x), weights(mixer, x).mean(-1)
    expected = alpha[:, 0, 1:] if first else alpha.mean(1)
    wanted = torch.autograd.grad([plain, expected], leaves, [of_y, of_importance])
    assert torch.allclose(y, plain, atol=1e-12)
    assert torch.allclose(importance, expected, atol=1e-12)
    for own, other in zip(found, wanted, strict=True):
        assert torch.allclose(own, other, atol=1e-10)
