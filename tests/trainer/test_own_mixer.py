"""A mixer of the user's own, without formulas for its cost, does all that a shipped one does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors import safe_open

from models import ModelConfig, ViTConfig, build_model
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.plan import plan
from parallel.spawn import run_processes
from tests.parallel.planner.planned_steps import Case, payloads, peaks
from tests.ranks import losses, train_on
from tests.saved import newest, saved_state
from tests.tiny import TINY

TOY = {"kind": "tests.toy_mixer:RelativeValuesConfig", "heads": 2, "head_dim": 4}
REDUCED = TINY["model"] | {
    "image_size": 84,
    "patch_size": 21,
    "stages": [
        {"layers": 1, "reduce": {"kind": "tests.toy_mixer:EverySecondConfig"}},
        {"layers": 1, "mixer": {"kind": "attention", "heads": 2, "head_dim": 4}},
        {"layers": 1, "mixer": {"kind": "tests.toy_mixer:ShiftConfig"}},
    ],
}
MESHES = {
    "offset 2 × data 2 × ZeRO-3": (4, ["parallel.offset=2", "parallel.engine=deepspeed", "parallel.zero=3"]),
    "tensor 2": (2, ["parallel.tensor=2"]),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.yaml"
    path.write_text(yaml.safe_dump(TINY | {"model": TINY["model"] | {"mixer": TOY}}))
    return path


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    run = config.parent / "alone"
    (ended,) = train_on(1, [[str(config), f"run_dir={run}"]], seconds=60)
    assert ended.codes == [0], ended.errors
    return run


@pytest.mark.parametrize(("processes", "words"), MESHES.values(), ids=MESHES)
def test_it_trains_on_a_mesh_to_the_losses_of_one_process(
    config: Path, alone: Path, processes: int, words: list[str], tmp_path: Path
):
    (ended,) = train_on(processes, [[str(config), f"run_dir={tmp_path / 'run'}", *words]], seconds=100)
    assert ended.codes == [0] * processes, ended.errors
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)


def test_a_net_that_reduces_its_tokens_agrees_on_every_mesh(tmp_path: Path, translution: Callable):
    path = tmp_path / "reduced.yaml"
    path.write_text(yaml.safe_dump(TINY | {"model": {k: v for k, v in REDUCED.items() if k != "depth"}}))
    done = translution("verify", path, "--layouts", "offset=2,activations=block", "--layouts", "zero=3")
    assert done.code == 0, done.out + done.err
    assert "all 2 layouts agree" in done.out


def test_traffic_and_memory_of_a_net_that_reduces_its_tokens_are_planned():
    model = ViTConfig.model_validate(
        CASE.model.model_dump() | {"mixer": TOY, "depth": 3, "stages": [*REDUCED["stages"]]}
    )
    cases = [Case(model, ParallelConfig(offset=2), 16)]
    for ((counted, predicted),) in run_processes(payloads, 2, cases, seconds=100):
        assert counted == predicted
    ((measured, planned),) = peaks([Case(model, ParallelConfig(), 16)])
    assert planned == pytest.approx(measured, rel=0.15)


CASE = Case(
    ViTConfig.model_validate(
        {
            "image_size": 96,
            "patch_size": 16,
            "classes": 10,
            "width": 96,
            "depth": 3,
            "mlp": 384,
            "mixer": TOY | {"head_dim": 48},
        }
    ),
    ParallelConfig(),
    16,
)


PLANNED = {
    "one process": (1, ParallelConfig()),
    "offset 2": (2, ParallelConfig(offset=2)),
    "tensor 2": (2, ParallelConfig(tensor=2)),
    "offset 2 × data 2 × ZeRO-3": (4, ParallelConfig(offset=2, engine="deepspeed", zero=3)),
}


@pytest.mark.parametrize(
    ("processes", "parallel"),
    [
        pytest.param(*case, id=name, marks=() if name == "offset 2" else pytest.mark.soak)
        for name, case in PLANNED.items()
    ],
)
def test_its_planned_peak_is_within_15_per_cent_of_the_measured(processes: int, parallel: ParallelConfig):
    for ((measured, predicted),) in run_processes(
        peaks, processes, [CASE._replace(parallel=parallel)], seconds=100
    ):
        assert predicted == pytest.approx(measured, rel=0.15)


def test_it_is_exported_and_read_back(alone: Path, translution: Callable, tmp_path: Path):
    out = tmp_path / "own.safetensors"
    done = translution("export", alone, "--out", out)
    assert done.code == 0, done.err
    with safe_open(out, "pt") as file:
        config = TypeAdapter(ModelConfig).validate_python(json.loads(file.metadata()["model"]))
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    net = build_model(config)
    net.load_state_dict(state)
    saved = saved_state(newest(alone), config)["weight"]
    assert all(torch.equal(p, saved[name]) for name, p in net.named_parameters())


def test_verify_compares_it_on_every_mesh(config: Path, translution: Callable):
    done = translution("verify", config, "--layouts", "offset=2", "--layouts", "tensor=2,zero=3")
    assert done.code == 0, done.out + done.err
    assert "all 2 layouts agree" in done.out


def test_an_unknown_cost_is_reported_and_stops_nothing(tmp_path: Path, translution: Callable):
    peeking = TOY | {"kind": "tests.toy_mixer:PeekingConfig"}
    path = tmp_path / "peeking.yaml"
    path.write_text(yaml.safe_dump(TINY | {"model": TINY["model"] | {"mixer": peeking}}))
    model = ViTConfig.model_validate(
        {k: v for k, v in TINY["model"].items() if k != "kind"} | {"mixer": peeking}
    )
    (remark,) = plan(model, ParallelConfig(), Mesh(), 8).remarks
    assert remark.startswith("not planned: Peeking (RuntimeError: ")
    shown = translution("plan", path, "--devices-per-node", "1")
    assert shown.code == 0, shown.err
    assert "not planned: Peeking" in shown.out
    assert "Recommended: nothing, since part of the net is not planned." in shown.out
    assert "fits" not in shown.out
    trained = translution("train", path, f"run_dir={tmp_path / 'run'}", "train.steps=1")
    assert trained.code == 0, trained.err


def test_a_mixer_that_declares_nothing_is_replicated_and_that_is_reported():
    model = ViTConfig.model_validate(
        {"image_size": 8, "patch_size": 4, "width": 8, "mixer": {"kind": "tests.toy_mixer:MeanConfig"}}
    )
    remarks = plan(model, ParallelConfig(offset=2, tensor=2), Mesh(1, 2, 2), 8).remarks
    assert remarks == (
        "Mean declares no heads: each of 2 tensor ranks computes it whole",
        "Mean has no bank entries: each of 2 offset ranks computes it whole",
    )
