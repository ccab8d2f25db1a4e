"""A whole step over its operator and its dense products alone."""

import json

import pytest

from launch.bench.step.rows import bench_step, usual_nets
from launch.bench.step.show import show
from tests.launch.rehearse.nets import GPT, VIT, config


def test_a_step_is_measured_beside_its_parts(capsys: pytest.CaptureFixture[str]):
    result = bench_step([config(VIT | {"depth": 1}, batch=4, accumulate=2)], 1, None)
    (row,) = result["rows"]
    assert row["step_seconds"] > 0
    assert row["over_both"] == row["step_seconds"] / (row["operator_seconds"] + row["dense_seconds"])
    assert set(row["rest_seconds"]) == {"update", "other"}
    show(result, as_json=True)
    assert json.loads(capsys.readouterr().out) == result
    show(result, as_json=False)
    assert "small: N=17, B=4, C=16, 1 layers" in capsys.readouterr().out


def test_on_a_card_the_parts_and_the_rest_are_the_whole_step(capsys: pytest.CaptureFixture[str]):
    """Also of a part of a net, whose collectives are left out."""
    net = config(GPT | {"depth": 1}, precision="bf16", offset=2)
    result = bench_step([net], 1, "h100")
    (row,) = result["rows"]
    rest = row["rest_seconds"]
    assert row["step_seconds"] == pytest.approx(
        row["operator_seconds"] + row["dense_seconds"] + sum(rest.values())
    )
    assert {"_fused_adamw_", "gelu"} <= set(rest)
    assert row["operator_seconds"] > 0 < row["dense_seconds"]
    show(result, as_json=False)
    assert "NVIDIA H100 SXM, counted, not measured" in capsys.readouterr().out


@pytest.mark.parametrize("card", [None, "h100"])
def test_the_usual_nets_are_a_vision_net_and_a_gpt(card: str | None):
    nets = usual_nets(card)
    assert [net.model.kind for net in nets] == ["vit", "gpt"]
    assert all(net.model.mixer.kind == "translution" for net in nets)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--card", "h100", "{config}"],
            "--card: a card's kernels are counted in bfloat16; add precision=bf16",
        ),
        (["--card", "x1"], "--card x1: one of a100, h100, h200, b200 is needed"),
        (["train.batch=8"], "train.batch=8: overrides a config; name its file first"),
        (
            ["{config}", "study={{seed: [0, 1]}}"],
            "is a study of several nets; add study=null to time one net",
        ),
    ],
)
def test_a_mistake_is_one_line(translution, config_file, words: list[str], message: str):
    outcome = translution("bench", "step", *(word.format(config=config_file) for word in words))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
