"""Exports: one file, or files with the Hub's index; read back whole or in a mesh place's part."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from launch.checkpoint import streamed_export
from launch.checkpoint.streamed_export import export_checkpoint
from models import build_model, load_pretrained
from models.pretrained.weights import PretrainedWeights
from parallel.checkpoint.catalogue import Catalogue
from parallel.checkpoint.contents import read_contents
from parallel.sharding.layout import shards
from parallel.sharding.pretrained import read_shard
from tests.parallel.checkpoint.nets import part, ranks, write
from tests.parallel.sharding.test_layout import NETS


@pytest.mark.parametrize("name", ["vit", "tied gpt"])
@pytest.mark.parametrize("out", ["one.safetensors", "several"])
def test_files_hold_the_weights_of_any_mesh_and_are_read_in_parts(
    name: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streamed_export, "_ONCE", 1000)  # so that banks are written in several parts
    with torch.device("meta"):
        net = build_model(NETS[name])
    state = write(tmp_path / "step", net, (2, 2, 1), zero=3)["weight"]
    catalogue = Catalogue(read_contents(tmp_path / "step"))
    export_checkpoint(catalogue, NETS[name], tmp_path / out, file_bytes=4000)
    weights = PretrainedWeights(tmp_path / out)
    assert weights.config == NETS[name]
    assert set(weights.names) == {*state, "count", "mean"}
    for mesh in [*ranks(1, 2, 2), *ranks(1, 1, 1)]:
        for each, shard in shards(net, mesh).items():
            assert torch.equal(read_shard(weights, each, shard), part(state[each], shard))
    assert weights.read("count") == 5
    if out == "several":
        index = json.loads((tmp_path / out / "model.safetensors.index.json").read_text())
        files = sorted(set(index["weight_map"].values()))
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        assert len(files) > 3
        for file in files:
            with safe_open(tmp_path / out / file, "pt") as opened:
                own = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            assert {key for key, place in index["weight_map"].items() if place == file} == set(own)
            assert sum(t.numel() * t.element_size() for t in own.values()) <= 4000 or len(own) == 1


def test_a_run_is_exported_and_loaded_as_a_net(config_file: Path, tmp_path: Path, translution: Callable):
    run, out = tmp_path / "run", tmp_path / "net"
    assert translution("train", config_file, f"run_dir={run}").code == 0
    assert translution("export", run, "--out", out).code == 0
    again = tmp_path / "again"
    start = translution("train", config_file, f"train.init_from={out}", f"run_dir={again}", "train.steps=1")
    assert start.code == 0, start.err
    net = load_pretrained(out)
    assert torch.equal(
        net.get_parameter("layers.0.mixer.q_bank"), load_pretrained(out).layers[0].mixer.q_bank
    )
    assert (out / "config.json").is_file()
    shutil.rmtree(out)
    with pytest.raises(ValueError, match="is no file or folder of `translution export"):
        load_pretrained(out)
