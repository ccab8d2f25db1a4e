"""Slurm's commands with recorded output."""

import os
from pathlib import Path

import pytest

from tests.launch.slurm.recorded import NOW, RecordedSlurm


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedSlurm:
    """First in PATH; the time stands at NOW."""
    slurm = RecordedSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    monkeypatch.setattr("time.time", lambda: NOW)
    return slurm
