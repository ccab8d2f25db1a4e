"""Every config that we ship loads, is the net that it says it is, and small runs of them train."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import build_model
from parallel.code_folder import CODE_FOLDER
from trainer.config.run import RunConfig, load_config
from trainer.config.study import run_members

CONFIGS = CODE_FOLDER / "configs"
NETS = sorted(
    path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "cluster" and path.stem != "base"
)
UNITS = {"M": 1e6, "B": 1e9}


def parameters(config: RunConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config.model).parameters())


@pytest.mark.parametrize("path", NETS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_is_the_net_that_its_first_line_says(path: Path):
    config = load_config(path, [])
    assert run_members(config.model_copy(update={"compare": None}))
    first = path.read_text().split("\n", 1)[0]
    if path.parent.name in ("imagenet", "openwebtext", "paper"):
        said = re.search(r"([\d.]+) (M|B) parameters", first)
        assert said
        digits = len(said[1].split(".")[1])
        assert f"{parameters(config) / UNITS[said[2]]:.{digits}f}" == said[1]


@pytest.mark.parametrize(
    ("name", "rules", "steps"),
    [
        ("sharing", ["none", "log", "clip(3)", "clip(2)", "clip(1)"], 500),
        ("sharing_text", ["none", "log", "clip(8)", "clip(3)", "clip(1)"], 250),
    ],
)
def test_the_comparison_has_every_rule_beside_attention_and_alpha_with_five_seeds(name, rules, steps):
    config = load_config(CONFIGS / "compare" / f"{name}.yaml", [])
    members = run_members(config)
    assert len(members) == 35
    mixers = [member.config.model.mixer.model_dump() for member in members]
    assert [mixer["kind"] for mixer in mixers[::5]] == ["attention"] + 6 * ["translution"]
    assert [mixer["share"] for mixer in mixers[10::5]] == rules
    assert mixers[5]["rank"] == 8
    assert [member.config.seed for member in members] == 7 * [0, 1, 2, 3, 4]
    assert config.train.steps == steps


@pytest.mark.parametrize("name", ["attention", "alpha", pytest.param("full", marks=pytest.mark.soak)])
def test_dynamic_mnist_trains_on_the_embedded_digits(name: str, tmp_path: Path, translution: Callable):
    few = ["data.path=null", "train.steps=2", "train.batch=4", "train.warmup_steps=1", "data.test_samples=20"]
    overrides = [*few, "device=cpu", "model.depth=1", f"run_dir={tmp_path / 'study'}"]
    done = translution("train", CONFIGS / "paper" / f"dynamic_mnist_{name}.yaml", *overrides)
    assert done.code == 0, done.err
    header, row = done.out.strip().split("\n")[-2:]
    assert header.split() == ["parameters", "Static→Static", "Static→Dynamic", "Dynamic→Dynamic"]
    assert row.split()[0] == f"dynamic_mnist_{name}"
    assert "–" not in row


def test_a_study_replaces_that_of_the_base(tmp_path: Path):
    (tmp_path / "own.yaml").write_text(f"base: {CONFIGS / 'debug.yaml'}\nstudy: {{seed: [5, 6]}}\n")
    config = load_config(tmp_path / "own.yaml", [])
    assert config.study == {"seed": [5, 6]}
