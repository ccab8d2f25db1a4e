"""An exported file holds the checkpoint's weights, whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from models import build_model
from models.reference.convert import load_reference_network, to_reference_state
from models.transformer import ViTConfig
from tests.saved import newest, saved_state
from trainer.config.run import load_config


@pytest.fixture
def run(config_file: Path, tmp_path: Path, translution: Callable) -> Path:
    path = tmp_path / "run"
    assert translution("train", config_file, f"run_dir={path}", "model.pool=cls").code == 0
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    return saved_state(newest(run), load_config(run / "config.yaml", []).model)["weight"]


def test_safetensors_hold_our_weights_and_the_nets_config(run: Path, tmp_path: Path, translution: Callable):
    out = tmp_path / "net.safetensors"
    done = translution("export", run, "--format", "safetensors", "--out", out)
    assert (done.code, done.out) == (0, f"wrote {out}\n"), done.err
    with safe_open(out, "pt") as file:
        config = ViTConfig.model_validate(json.loads(file.metadata()["model"]))
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    build_model(config).load_state_dict(state)
    assert all(torch.equal(state[key], tensor) for key, tensor in weights(run).items())


def test_the_reference_file_is_the_public_codes_state_dict(run: Path, tmp_path: Path, translution: Callable):
    out = tmp_path / "net.pt"
    assert translution("export", run, "--format", "reference", "--out", out).code == 0
    state = torch.load(out, weights_only=True)
    assert "translution.layers.0.0.to_q.unique_params" in state
    net = load_reference_network(state, heads=2)
    assert net.state_dict().keys() == weights(run).keys()
    assert all(torch.equal(tensor, weights(run)[key]) for key, tensor in net.state_dict().items())
    assert to_reference_state(net).keys() == state.keys()


def test_a_run_that_cannot_be_exported_is_one_line(config_file: Path, tmp_path: Path, translution: Callable):
    run = tmp_path / "run"
    assert translution("train", config_file, f"run_dir={run}").code == 0  # pooled by the mean
    words = ("--format", "reference", "--out")
    for refused, says in (
        (translution("export", run, *words, tmp_path / "net.pt"), "no counterpart of pool mean"),
        (translution("export", tmp_path, *words, tmp_path / "net.pt"), "not a run directory"),
        (translution("export", run, "--out", tmp_path), "is a directory"),
        (
            translution("export", run, "--out", tmp_path / "no" / "net.safetensors"),
            "net.safetensors: cannot be",
        ),
    ):
        assert refused.code == 2
        assert says in refused.err
        assert refused.err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if "net" in path.name]
