"""The walk is the fastest by count of those that can run, or the one that was asked for."""

import pytest
import torch

from models.offsets import OffsetGrid
from models.ops import kernel_choice
from models.ops.cards import CARDS, meta_is
from models.ops.kernel_choice import choose_walk
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
