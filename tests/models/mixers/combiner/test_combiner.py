"""Combiner attention equals its definition, token by token."""

import pytest
import torch

from models.mixers.combiner.summaries import fixed, mixture
from tests.models.mixers.combiner.naive import attend


@pytest.mark.parametrize(("rows", "segment"), [(1, 4), (3, 1), (3, 4), (4, 3)])
@pytest.mark.parametrize("form", ["fixed", "fixed, both ways", "mixture"])
def test_it_equals_its_definition(form: str, rows: int, segment: int):
    generator = torch.Generator().manual_seed(rows)
    shape = (2, 2, rows, segment, 3)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    found = mixture(q, k, v) if form == "mixture" else fixed(q, k, v, causal=form == "fixed")
    for b in range(2):
        for h in range(2):
            naive = attend(form.split(",")[0], q[b, h], k[b, h], v[b, h], causal=form != "fixed, both ways")
            assert torch.allclose(found[b, h], naive, atol=1e-12)
