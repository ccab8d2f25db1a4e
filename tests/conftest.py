"""Shared by all tests: one thread, a tiny config, and the `translution` command."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from tests.tiny import TINY

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup

_FIRST = ("slurm", "models", "trainer", "parallel")  # their files take long: workers end together


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(tests).parts[0]
        return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With pytest-xdist, the tests of a file stay on one worker; so do all that share the Slurm cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "slurm" if file.startswith("tests/slurm/") else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _no_modes_of_torch():
    """Switches off the modes of torch that a command leaves on in this process."""
    yield
    torch.autograd.set_detect_anomaly(False)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A config file of the tiny net, with dropout."""
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
    """Runs the `translution` command in this process, because starting one takes seconds."""
    from launch.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["translution", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        assert isinstance(code, int | None)
        output = capsys.readouterr()
        return Outcome(code or 0, str(output.out), str(output.err))

    return run
