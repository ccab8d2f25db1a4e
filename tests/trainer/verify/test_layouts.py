"""`translution verify`: the table, the exit code, and what is refused before any process starts."""

from dataclasses import replace

import pytest

from trainer.verify import verify

LAYOUT = "data 2 × offset 1 × tensor 1 torch activations none"
RESULT = verify.LayoutResult(
    LAYOUT, 2.5, 1.5, 1e-7, 0.0, 1e-7, 1000, {"data": 4, "offset": 0, "tensor": 0, "model": 0}
)


def test_a_chosen_layout_is_compared_in_processes(translution):
    done = translution("verify", "--layouts", "offset=2,zero=3,activations=block")
    assert done.code == 0, done.err
    assert "data 1 × offset 2 × tensor 1 deepspeed ZeRO-3 activations block" in done.out
    assert "all 1 layouts agree" in done.out


def test_a_layout_that_disagrees_gives_exit_code_1(translution, monkeypatch):
    results = [RESULT, replace(RESULT, layout="other", weight_error=1e-3)]
    monkeypatch.setattr(verify, "verify", lambda *_: results)
    done = translution("verify")
    assert done.code == 1
    assert "DISAGREES" in done.out
    assert "1 of 2 layouts disagree" in done.out


def test_layouts_over_which_the_net_does_not_divide_are_skipped(translution, monkeypatch, config_file):
    seen = {}

    def compare(model, layouts, processes, seconds):
        seen.update(model=model, layouts=layouts)
        return [RESULT]

    monkeypatch.setattr(verify, "verify", compare)
    done = translution("verify", config_file, "model.mixer.heads=3", "model.mlp=18")
    assert done.code == 0, done.err
    assert seen["model"].mixer.heads == 3
    assert seen["model"].dropout == 0  # the config has some
    assert {layout.tensor for layout in seen["layouts"]} == {1}
    assert (
        "skipped: data 1 × offset 1 × tensor 2: model: heads=3 is not divisible by parallel.tensor=2"
        in done.out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layouts", "offset=3"], "parallel.offset=3 × parallel.tensor=1 = 3 does not divide the 2"),
        (["--layouts", "ofset=2"], "--layouts ofset=2: ofset=2: one of offset, tensor"),
        (["--layouts", "zero=7"], "--layouts zero=7: zero=7: Input should be less than or equal to 3"),
        (["--layouts", "fast"], "'fast' is not key=value"),
        (["model.width=8"], "model.width=8: overrides need a config"),
        (["configs/debug.yaml", "model.width=20000"], "parameters in each of 2 processes need about"),
        (["configs/debug.yaml", "--layouts", "tensor=2"], "heads=1 is not divisible by parallel.tensor=2"),
    ],
)
def test_bad_input_is_one_line(translution, words, message):
    done = translution("verify", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_hang_ends_with_a_message(translution, monkeypatch):
    def hang(*_):
        raise TimeoutError("ranks [1] of 2 did not end in time")

    monkeypatch.setattr(verify, "verify", hang)
    done = translution("verify", "--limit", 5)
    assert done.code == 2
    assert "--limit 5 s: ranks [1] of 2 did not end in time" in done.err
