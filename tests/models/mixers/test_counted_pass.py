"""A mixer's passes counted on the meta device: launches, time and memory of one part of the work."""

import pytest
import torch

from models.mixers.attention import Attention
from models.mixers.counted_pass import count_pass
from models.mixers.translution import Translution
from models.ops.cards import CARDS
from models.ops.kernel_cost import WORKSPACES
from models.tokens import TokenGrid

H100 = CARDS["h100"]
TOKENS = TokenGrid((14, 14), class_token=True)


def layer(width=192, **options):
    with torch.device("meta"):
        return Translution(width, TOKENS.offsets(), width // 64, **options)


def test_attention_is_five_kernels_forward():
    with torch.device("meta"):
        attention = Attention(192, TOKENS, 3)
    counted = count_pass(attention, 32, H100)
    assert counted.forward.by_operator["_scaled_dot_product_flash_attention_for_cpu"] == 1
    assert counted.forward.kernels == 5  # q, k, v, attention, out
    assert counted.kernels == ()
    useful = 4 * 197**2 * 192 * 32 + 2 * 4 * 32 * 197 * 192**2
    assert counted.forward.flops == useful
    assert 2 * useful < counted.backward.flops < 3 * useful  # attention is recomputed


def test_a_layer_stays_as_it_was():
    mixer = layer()
    before = {name: (p.shape, p.dtype) for name, p in mixer.named_parameters()}
    count_pass(mixer, 4, H100, head_parts=3, pair_parts=2)
    assert {name: (p.shape, p.dtype) for name, p in mixer.named_parameters()} == before


def test_parts_of_pairs_and_heads_take_their_share():
    whole = count_pass(layer(), 128, H100)
    for parts in ({"pair_parts": 3}, {"head_parts": 3}):
        part = count_pass(layer(), 128, H100, **parts)
        assert part.forward.flops == pytest.approx(whole.forward.flops / 3, rel=0.1)
        assert whole.seconds / 3.5 < part.seconds < whole.seconds


def test_the_chosen_kernel_and_the_reasons_against_others_are_told():
    assert count_pass(layer(), 8, H100).kernels[0] in ("fused", "grouped")
    forced = count_pass(layer(kernel="loop"), 8, H100)
    assert forced.kernels == ("loop",)
    assert "grouped" in count_pass(layer(), 8, CARDS["a100"]).refused


def test_memory_leaves_out_parameters_their_gradients_and_the_input():
    mixer = layer(kernel="grouped", workspace=1 << 30)
    banks = sum(p.numel() * 4 for name, p in mixer.named_parameters() if "bank" in name)
    x = 8 * 197 * 192 * 2
    counted = count_pass(mixer, 8, H100)
    assert counted.extra_bytes < (1 << 30) + 20 * x
    assert (
        count_pass(layer(kernel="grouped", workspace=1 << 26), 8, H100).extra_bytes
        < (1 << 26) + 20 * x
        < banks
    )


def test_what_an_operator_allocates_inside_counts(monkeypatch):
    mixer = layer(kernel="grouped")
    without = count_pass(mixer, 8, H100).extra_bytes
    merge = torch.ops.translution.grouped_merge.default
    monkeypatch.setitem(WORKSPACES, merge, lambda q, *rest: 10**10)
    assert count_pass(mixer, 8, H100).extra_bytes == pytest.approx(10**10 + without, rel=0.1)
