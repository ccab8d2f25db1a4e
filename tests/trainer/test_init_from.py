"""A run that begins with the weights of another one, under another share rule and on any mesh."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from parallel.checkpoint.load import read_part
from tests.ranks import losses, train_on
from tests.saved import flip_byte, newest, remove_checkpoints
from tests.tiny import TINY
from trainer.config.run import load_config
from trainer.init_from import load_weights
from trainer.run_directory.restoring import open_weights, restore
from trainer.run_directory.run_directory import RunDirectory
from trainer.setup import build_engine

MIXER = TINY["model"]["mixer"] | {"heads": 2}
NET = TINY["model"] | {"patch_size": 12, "mixer": MIXER | {"share": "log"}}  # 7 × 7 tokens


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a config, and beside it the run `log` of its net, whose offsets share entries, and an
    export of it."""
    from launch.export import export
    from trainer.__main__ import main

    file = tmp_path_factory.mktemp("shared") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"model": NET}))
    run = file.parent / "log"
    assert main([str(file), f"run_dir={run}"]) == 0
    export(run, "safetensors", file.parent / "log.safetensors")
    return file


def first_logits(config_file: Path, share: str, source: Path, tmp_path: Path) -> torch.Tensor:
    overrides = [f"model.mixer.share={share}", f"train.init_from={source}"]
    config = load_config(config_file, overrides)
    engine = build_engine(config)
    run = RunDirectory(tmp_path / f"of-{share}")
    run.create(config, again=True)
    load_weights(engine, run, config)
    return engine.model.eval()(images())


def images() -> torch.Tensor:
    return torch.randn(4, 1, 84, 84, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", ["log", "log/checkpoints/step-00000006", "log.safetensors"])
def test_leaving_a_rule_keeps_the_logits(shared: Path, source: str, tmp_path: Path):
    trained = build_engine(load_config(shared, []))
    restore(trained, RunDirectory(shared.parent / "log"), load_config(shared, []))
    expected = trained.model.eval()(images())
    for share in ("log", "log(1.5)", "none"):
        found = first_logits(shared, share, shared.parent / source, tmp_path)
        assert torch.allclose(found, expected, atol=1e-6)
    coarser = first_logits(shared, "clip(1)", shared.parent / source, tmp_path)
    assert not torch.allclose(coarser, expected, atol=1e-4)


def test_the_unfolded_net_trains_on_and_resumes_from_its_own_checkpoint(
    shared: Path, tmp_path: Path, translution: Callable
):
    source, whole, cut = tmp_path / "source", tmp_path / "whole", tmp_path / "cut"
    shutil.copytree(shared.parent / "log", source)
    words = ("train", shared, "model.mixer.share=none", f"train.init_from={source}")
    done = translution(*words, f"run_dir={whole}")
    assert done.code == 0, done.err
    origin = newest(source)
    assert f"weights from {origin}" in done.out
    assert json.loads((whole / "result.json").read_text())["init_from"] == str(origin)
    assert json.loads((whole / "init_from.json").read_text())["model"]["mixer"]["share"] == "log"
    bank = read_part(open_weights(whole / "checkpoints" / "step-00000006"), "layers.0.mixer.q_bank")
    grid = load_config(shared, []).model.token_grid.offsets("log")
    apart = bank[[6 * 13 + 6 + 2, 6 * 13 + 6 + 3]]  # offsets (0, 2) and (0, 3) shared an entry
    assert grid.entry((0, 2)) == grid.entry((0, 3))
    assert not torch.equal(*apart)

    shutil.copytree(whole, cut)
    remove_checkpoints(cut, after=3)
    shutil.rmtree(source)  # a resumed run does not need it
    resumed = translution("train", "--resume", cut)
    assert resumed.code == 0, resumed.err
    assert losses(cut) == losses(whole)
    assert json.loads((cut / "result.json").read_text())["init_from"] == str(origin)

    again = translution(*words, f"run_dir={tmp_path / 'new'}")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert f"train.init_from={source}: no such run" in again.err


@pytest.fixture(scope="module")
def on_meshes(shared: Path) -> Path:
    """Runs from the shared one's weights: of one process, and of two over the offset axis and ZeRO-3; then
    runs of one process from a checkpoint of those two."""
    from trainer.__main__ import main

    folder = shared.parent
    words = [str(shared), "model.mixer.share=none", f"train.init_from={folder / 'log'}"]
    zero3 = ["parallel.engine=deepspeed", "parallel.zero=3"]
    runs = [
        [*words, "parallel.offset=2", f"run_dir={folder / 'offset'}"],
        [*words, "parallel.tensor=2", f"run_dir={folder / 'tensor'}"],
        [*words, *zero3, f"run_dir={folder / 'zero3'}"],
    ]
    assert main([*words, f"run_dir={folder / 'one'}"]) == 0
    for ended in train_on(2, runs, seconds=100):
        assert ended.codes == [0, 0], ended.errors
    for name in ("one", "offset"):
        entering = [str(shared), f"train.init_from={folder / name}", f"run_dir={folder / f'from-{name}'}"]
        assert main(entering) == 0
    return folder


@pytest.mark.parametrize("mesh", ["offset", "tensor", "zero3"])
def test_ranks_begin_with_their_own_entries(on_meshes: Path, mesh: str):
    assert losses(on_meshes / mesh) == pytest.approx(losses(on_meshes / "one"), rel=1e-4)


def test_a_checkpoint_of_a_mesh_is_a_beginning_too(on_meshes: Path):
    assert losses(on_meshes / "from-offset") == pytest.approx(losses(on_meshes / "from-one"), rel=1e-4)
    assert losses(on_meshes / "from-one")[0] < losses(on_meshes / "log")[0]


def test_each_net_of_a_study_begins_with_the_same_weights(
    shared: Path, tmp_path: Path, translution: Callable
):
    words = (f"train.init_from={shared.parent / 'log'}", "train.steps=1", f"run_dir={tmp_path / 'study'}")
    done = translution("train", shared, "study={model.mixer.share: [log, none, clip(1)]}", *words)
    assert done.code == 0, done.err
    log, none, clip = (losses(tmp_path / "study" / f"share={rule}")[0] for rule in ("log", "none", "clip(1)"))
    assert none == pytest.approx(log, rel=1e-6)
    assert clip != pytest.approx(log, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.width=16"], "model.width is 8 there and 16 here; only mixer.share may differ"),
        (["model.mixer.heads=1"], "model.mixer.heads is 2 there and 1 here"),
        (["model.patch_size=28"], "model.patch_size is 12 there and 28 here"),
        (["model.depth=2"], "model.depth is 1 there and 2 here"),
        (["train.init_from={folder}"], "is no run, no checkpoint of one, and is no file"),
        (["train.init_from={folder}/none"], "no such run, checkpoint or export"),
        (
            ["train.init_from={folder}/tiny.yaml"],
            "is no run, no checkpoint of one, and is no file",
        ),
        (
            ["train.init_from={folder}/bare.safetensors"],
            "is no run, no checkpoint of one, and is no file",
        ),
        (["train.init_from={folder}/step-00000001"], "has no config.yaml"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_run_directory_exists(
    shared: Path, tmp_path: Path, translution: Callable, overrides: list[str], line: str
):
    folder = shared.parent
    save_file({"a": torch.zeros(1)}, folder / "bare.safetensors")
    shutil.copytree(newest(folder / "log"), folder / "step-00000001", dirs_exist_ok=True)
    words = [f"train.init_from={folder / 'log'}", f"run_dir={tmp_path / 'run'}"]
    words += [override.replace("{folder}", str(folder)) for override in overrides]
    refused = translution("train", shared, *words)
    assert refused.code == 2
    assert line in refused.err
    assert "train.init_from=" in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_one_line(shared: Path, tmp_path: Path, translution: Callable):
    source = tmp_path / "source"
    shutil.copytree(shared.parent / "log", source)
    flip_byte(newest(source) / "rank-0000.weight.safetensors", -5)
    refused = translution("train", shared, f"train.init_from={source}", f"run_dir={tmp_path / 'run'}")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "damaged checkpoint" in refused.err
