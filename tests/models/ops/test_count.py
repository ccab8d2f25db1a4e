"""Counting kernels: launches, bytes and FLOPs follow from shapes."""

import pytest
import torch

from models.ops.cards import CARDS, Card, card_for
from models.ops.count import LaunchCounter, TooSlow
from models.ops.kernel_cost import COSTS, KernelCost

CARD = Card("round numbers", (9, 0), 1e12, 1e9, 4e9, 1e6, 1e9, launch=1e-6)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def count(action, card=CARD, limit=float("inf")):
    with LaunchCounter(card, limit) as counter:
        action()
    return counter


def test_a_sum_reads_both_and_writes_one():
    a, b = meta(10, 20), meta(10, 20, dtype=torch.bfloat16)
    counted = count(lambda: a + b)
    assert (counted.kernels, counted.memory_bytes, counted.flops) == (1, 200 * (4 + 2 + 4), 0)


def test_views_and_allocations_are_free():
    x = meta(4, 6)
    counted = count(lambda: (x.t()[1:3].unsqueeze(0).expand(5, 2, 4), torch.empty_like(x), x.view(24)))
    assert counted.kernels == 0


def test_broadcast_numbers_are_read_once():
    x, y = meta(10, 1).expand(10, 20), meta(10, 20)
    assert count(lambda: y.add_(x)).memory_bytes == 4 * (10 + 2 * 200)


def test_a_gather_reads_what_it_writes():
    table, rows = meta(1000, 8), torch.zeros(3, dtype=torch.long, device="meta")
    assert count(lambda: table.index_select(0, rows)).memory_bytes == 2 * 3 * 8 * 4


def test_a_product_is_two_flops_a_multiply_add():
    a, b = meta(30, 40), meta(40, 50)
    counted = count(lambda: a @ b)
    assert counted.flops == 2 * 30 * 40 * 50
    assert counted.memory_bytes == 4 * (30 * 40 + 40 * 50 + 30 * 50)
    assert count(lambda: meta(30, 50).addmm_(a, b)).memory_bytes == counted.memory_bytes + 4 * 30 * 50


def test_grouped_products_pad_half_a_tile_a_group():
    rows, entries = meta(512, 64, dtype=torch.bfloat16), meta(4, 64, 32, dtype=torch.bfloat16)
    stops = torch.empty(4, dtype=torch.int32, device="meta")
    counted = count(lambda: torch.nn.functional.grouped_mm(rows, entries, offs=stops))
    assert counted.kernels == 1
    assert counted.flops == 2 * (512 + 4 * 64) * 64 * 32


def test_tables_made_on_the_host_are_not_kernels():
    assert count(lambda: torch.arange(9).cumsum(0).to("meta")).kernels == 0


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [
        (KernelCost(2_000, 4_000, 10), 2e-6),  # memory
        (KernelCost(2_000, 12_000, 10), 3e-6),  # cache
        (KernelCost(2_000, 4_000, 9_000_000), 9e-6),  # products
        (KernelCost(1, 1, 1), 1e-6),  # launch
    ],
)
def test_time_is_the_longest_of_four(cost, seconds):
    assert CARD.seconds(cost) == pytest.approx(seconds)


def test_custom_operators_say_what_they_cost(monkeypatch):
    launches = [KernelCost(5, 7, 11), KernelCost(1, 2, 3)]
    monkeypatch.setitem(COSTS, torch.ops.aten.relu.default, lambda x: launches * len(x))
    counted = count(lambda: torch.relu(meta(3)))
    assert (counted.kernels, counted.memory_bytes, counted.flops) == (6, 18, 42)
    assert counted.by_operator == {"relu": 6}


def test_a_count_ends_at_its_limit():
    x = meta(1000)
    with pytest.raises(TooSlow):
        count(lambda: [x + x for _ in range(100)], limit=10e-6)


def test_a_card_that_is_not_listed_is_the_nearest_older_one():
    assert card_for((8, 9)) == CARDS["a100"]
    assert card_for((9, 0)) == CARDS["h100"]
    assert card_for((12, 0)) == CARDS["b200"]


def test_an_operator_of_ours_without_a_cost_is_an_error(monkeypatch):
    from models.ops.grouped.operators import grouped_sum_rows

    monkeypatch.delitem(COSTS, torch.ops.translution.grouped_sum_rows.default)
    first, pair = (torch.empty(3, dtype=torch.int32, device="meta") for _ in range(2))
    with pytest.raises(NotImplementedError, match="grouped_sum_rows"):
        count(lambda: grouped_sum_rows(meta(4, 2), meta(2, 2, 2), first, pair, 0, 2))
