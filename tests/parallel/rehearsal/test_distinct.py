"""Ranks that differ, decided by what they hold."""

from __future__ import annotations

from models.transformer import GPTConfig, ViTConfig
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.plan import layer_kinds
from parallel.rehearsal.distinct import distinct_ranks

TRANSLUTION = {"kind": "translution", "head_dim": 64}
BASE = layer_kinds(
    ViTConfig.model_validate({"width": 768, "depth": 12, "mlp": 3072, "mixer": TRANSLUTION | {"heads": 12}})
)


def test_replicas_without_zero_do_the_same_but_for_the_first():
    found = distinct_ranks(BASE, Mesh(64, 8), ParallelConfig(offset=8))
    assert found == [*range(8), *range(504, 512)]


def test_under_zero_3_shares_that_are_cut_short_are_distinct():
    """Of 1,000 numbers of the head's bias over 512 replicas each has 2: the last with any is rank 499. Of 768
    the last is rank 383."""
    parallel = ParallelConfig(engine="deepspeed", zero=3)
    assert distinct_ranks(BASE, Mesh(512), parallel) == [0, 383, 499, 511]


def test_under_zero_1_the_last_share_of_the_flat_buffer_is_distinct():
    parallel = ParallelConfig(engine="deepspeed", zero=1)
    assert distinct_ranks(BASE, Mesh(8), parallel) == [0, 6, 7]


def test_ranks_of_equal_heads_differ_only_in_what_they_count():
    """Tensor ranks hold equal parts; what is on all of them only the first counts."""
    net = layer_kinds(GPTConfig.model_validate({"width": 64, "mlp": 64, "mixer": TRANSLUTION | {"heads": 4}}))
    assert distinct_ranks(net, Mesh(1, 1, 4), ParallelConfig(tensor=4)) == [0, 3]
