"""What several test files share: one thread, a tiny config, and the real command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from tests.tiny import TINY

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_anomaly_mode():
    """A command with --debug, run in this process, leaves torch's anomaly mode on."""
    yield
    torch.autograd.set_detect_anomaly(False)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """The tiny net, with dropout."""
    values = TINY | {"model": TINY["model"] | {"dropout": 0.1}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def translution(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """The `translution` command with these words, in this process: starting one takes seconds."""
    from launch.cli import main

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["translution", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        assert isinstance(code, int | None)
        written = capsys.readouterr()
        return Outcome(code or 0, str(written.out), str(written.err))

    return run
