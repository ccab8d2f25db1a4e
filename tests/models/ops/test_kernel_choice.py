"""The walk is the fastest by count of those that can run, or the one that was asked for."""

import pytest
import torch

from models.dealing import deal
from models.offsets import OffsetGrid
from models.ops import kernel_choice
from models.ops.cards import CARDS, meta_is
from models.ops.kernel_choice import ByOffset, choose_walk
from models.ops.recipe import Operand, Recipe
from models.ops.streamed import PairWalk
from models.ops.walk.schedule import whole_schedule

GRID = OffsetGrid((3, 4))
FULL = Recipe(((Operand(0, 0), Operand(0, 1)),), (Operand(0, 2),), 2, 0.5)
H100 = CARDS["h100"]


class Slow(PairWalk):
    """Three times the launches of the loop."""

    @staticmethod
    def forward(*arguments):
        for _ in range(2):
            PairWalk.forward(*arguments)
        return PairWalk.forward(*arguments)


class Quick(PairWalk):
    """Launches nothing in backward."""

    @staticmethod
    def backward(recipe, schedule, sources, banks, *rest):
        return [torch.empty_like(t) for t in sources], [torch.empty_like(t) for t in banks]


class Unable(Quick):
    @staticmethod
    def why_not(*arguments):
        return "it is Tuesday"


@pytest.fixture
def walks(monkeypatch):
    """Call it with the walks to choose from."""

    def use(**named):
        found = {(kernel, "full"): walk for kernel, walk in named.items()}
        monkeypatch.setattr(kernel_choice, "_WALKS", found)
        monkeypatch.setattr(kernel_choice, "_walk", lambda kernel, form: found[kernel, form])
        kernel_choice._choices.clear()

    yield use
    kernel_choice._choices.clear()


def choose(recipe=FULL, device="meta", banks=3):
    x = torch.empty(12, 2, 16, dtype=torch.bfloat16, device=device)
    bank = torch.empty(GRID.num_entries, 16, 16, device=device)
    return choose_walk(recipe, whole_schedule(GRID), [x], [bank] * banks)


@pytest.mark.parametrize("order", [("fused", "grouped"), ("grouped", "fused")])
def test_the_fastest_by_count_is_taken_in_whatever_order_they_are_tried(order, walks):
    quick, slow = order
    walks(**{"fused": None, "grouped": None} | {quick: Quick, slow: Slow} | {"loop": PairWalk})
    with meta_is(H100) as choice:
        assert choose() is Quick
    assert choice.chosen == [quick]


def test_what_cannot_run_is_not_taken_and_the_reason_is_kept(walks):
    walks(fused=Unable, grouped=Unable, loop=PairWalk)
    with meta_is(H100) as choice:
        assert choose() is PairWalk
    assert choice.refused == {"fused": "it is Tuesday", "grouped": "it is Tuesday"}


def test_a_shape_is_counted_once(walks, monkeypatch):
    walks(fused=Quick, grouped=Slow, loop=PairWalk)
    calls, count = [], kernel_choice.count_walk
    monkeypatch.setattr(kernel_choice, "count_walk", lambda *a: calls.append(a[0].__name__) or count(*a))
    with meta_is(H100):
        assert choose() is choose() is Quick
    assert sorted(calls) == ["Quick", "Slow"]


def test_the_loop_serves_the_cpu():
    assert choose(device="cpu") is PairWalk


def test_a_kernel_can_be_asked_for(walks):
    walks(fused=Quick, grouped=Slow, loop=PairWalk)
    assert choose(Recipe(FULL.logits, FULL.values, 2, 0.5, kernel="grouped")) is Slow


def test_a_kernel_that_cannot_run_is_refused_with_the_reason(walks):
    walks(fused=Unable, loop=PairWalk)
    with pytest.raises(ValueError, match=r"^mixer\.kernel=fused: it is Tuesday$"):
        choose(Recipe(FULL.logits, FULL.values, 2, 0.5, kernel="fused"))


def test_grouped_products_do_not_serve_alpha():
    recipe = Recipe((*FULL.logits, *FULL.logits), FULL.values, 2, 0.5, kernel="grouped")
    with pytest.raises(ValueError, match=r"mixer\.kernel=grouped: .*α-Translution"):
        choose(recipe)


def test_counting_a_walk_leaves_an_outer_count_alone(walks):
    walks(fused=Quick, grouped=Slow, loop=PairWalk)
    from models.ops.count import LaunchCounter

    with meta_is(H100), LaunchCounter(H100) as outer:
        choose()
    assert outer.kernels == 0


SHARED = OffsetGrid((1024,), causal=True, share="log")


def shared_choice(grid, recipe=FULL, width=64, dtype=torch.bfloat16, batch=8):
    """What serves a layer of shared entries on an H100, and its kernel."""
    schedule = whole_schedule(grid, row_work=width / 2)
    assert schedule.in_bands
    x = torch.empty(grid.num_tokens, batch, width, dtype=dtype, device="meta")
    bank = torch.empty(grid.num_entries, width, width, device="meta")
    with meta_is(H100) as choice:
        walk = choose_walk(recipe, schedule, [x] * 5, [bank] * 3)
    return walk, *choice.chosen


def test_shared_entries_are_visited_in_bands_by_kernels():
    walk, kernel = shared_choice(SHARED, width=128)
    assert (walk.__name__, kernel) == ("BandWalk", "fused")


def test_shared_entries_are_visited_by_offset_where_that_is_faster():
    """The entries of log(1.2) are almost as many as the offsets."""
    walk, kernel = shared_choice(OffsetGrid((14, 14), share="log(1.2)"), width=768, batch=32)
    assert isinstance(walk, ByOffset)
    assert kernel in ("fused", "grouped")


def test_what_single_offsets_cost_at_least_is_not_counted(monkeypatch):
    """8,192 tokens have 33 million pairs: their tables are never built."""
    counted = []
    count = kernel_choice.count_walk
    monkeypatch.setattr(kernel_choice, "count_walk", lambda walk, *a: counted.append(walk) or count(walk, *a))
    monkeypatch.setattr(kernel_choice, "MOST_PAIRS", 1 << 30)
    walk, _ = shared_choice(SHARED, width=256)
    assert counted == [walk]
    assert walk.__name__ == "BandWalk"


def test_alpha_visits_shared_entries_by_offset():
    operands = [Operand(i, i - 3 if i > 2 else None) for i in range(5)]
    alpha = Recipe(((operands[0], operands[1]), (operands[3], operands[4])), (operands[2],), 2, 0.5)
    walk, kernel = shared_choice(SHARED, alpha, width=16)
    assert (walk.walk.__name__, kernel) == ("AlphaWalk", "fused")


def test_more_pairs_than_tables_are_for_are_left_to_the_loop(monkeypatch):
    monkeypatch.setattr(kernel_choice, "MOST_PAIRS", 1000)
    operands = [Operand(i, i - 3 if i > 2 else None) for i in range(5)]
    alpha = Recipe(((operands[0], operands[1]), (operands[3], operands[4])), (operands[2],), 2, 0.5)
    walk, kernel = shared_choice(OffsetGrid((60,), causal=True, share="log"), alpha, width=16)
    assert (walk, kernel) == (PairWalk, "loop")


def test_float64_in_bands_is_left_to_the_loop():
    walk, kernel = shared_choice(SHARED, width=64, dtype=torch.float64)
    assert (walk, kernel) == (PairWalk, "loop")


def test_a_walk_by_offset_gives_what_the_walk_in_bands_gives():
    """Also on a part of the bands, whose entries are numbered anew."""
    grid = OffsetGrid((4, 5), class_token=True, share="clip(1)")
    whole = whole_schedule(grid, row_work=1e6)
    for schedule in (whole, *(share.schedule(whole) for share in deal(whole, 2))):
        torch.manual_seed(0)
        x = torch.randn(21, 2, 4, dtype=torch.float64)
        banks = list(torch.randn(3, schedule.num_entries, 4, 4, dtype=torch.float64))
        recipe = Recipe(FULL.logits, FULL.values, 2, 0.5, workspace=1)
        results = []
        for walk in (PairWalk, ByOffset(PairWalk)):
            lse, outs, kept = walk.forward(recipe, schedule, [x], banks)
            grads = walk.backward(recipe, schedule, [x], banks, kept, lse, lse, outs)
            results.append([lse, *outs, *grads[0], *grads[1]])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
