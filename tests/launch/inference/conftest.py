"""A run of a language net and one of an image net, trained for two steps and shared by all tests here."""

from pathlib import Path

import pytest
import yaml

from tests.tiny import TINY
from trainer.train import train

TEXT = {
    "device": "cpu",
    "model": {
        "kind": "gpt",
        "vocabulary": 256,
        "tokens": 12,
        "width": 8,
        "depth": 2,
        "mlp": 16,
        "mixer": {"kind": "translution", "heads": 2, "head_dim": 4},
    },
    "data": {"kind": "book", "validation_share": 0.0001},
    "train": {"steps": 2, "batch": 4, "log_every": 2},
}


def trained(folder: Path, values: dict) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return train(str(folder / "config.yaml"), [f"run_dir={folder / 'run'}", "train.steps=2"])


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("text"), TEXT)


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("images"), TINY)
