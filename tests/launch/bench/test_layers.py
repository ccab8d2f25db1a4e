"""What `bench op --shapes` reports of a layer."""

import pytest

from launch.bench import layers
from launch.bench.layers import Case, bench_layers, show_layers
from models import TokenGrid
from parallel.errors import UserError


def test_a_layer_is_measured_beside_attention_and_by_offset(monkeypatch, capsys):
    case = Case(TokenGrid((40,), causal=True), 2, "clip(3)", width=48, targets=(9.0, None), by_offset=True)
    monkeypatch.setitem(layers.GROUPS, "shared", (case,))
    result = bench_layers("shared", 1)
    recompute, keep = result["rows"]
    assert (recompute["policy"], keep["policy"]) == ("recompute", "keep")
    assert (recompute["entries"], recompute["pairs"]) == (4, 820)
    assert recompute["rows"] == 2 * (40 + 39 + 38 + 37)  # a band of the offsets from 3 on has 37 queries
    assert recompute["over_attention_target"] == 9.0
    assert keep["over_attention_target"] is None
    assert recompute["milliseconds"] > 0
    assert recompute["flops_over_attention"] > keep["flops_over_attention"] > 1
    assert keep["peak_bytes"] > recompute["peak_bytes"] > recompute["x_bytes"]
    assert 0.5 < recompute["planned_bytes"] / recompute["peak_bytes"] < 2
    assert recompute["by_offset"]["faster"] > 0
    show_layers(result, as_json=False)
    assert "40 causal, B=2, C=48, clip(3), recompute" in capsys.readouterr().out


def test_an_unknown_group_is_refused():
    with pytest.raises(UserError, match="--shapes paper: one of shared, alpha is needed"):
        bench_layers("paper", 1)
