"""The notebook runs from its first cell to its last, with fewer steps than for a person."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from parallel.code_folder import CODE_FOLDER

NOTEBOOK = CODE_FOLDER / "docs" / "moving_digits.ipynb"


def run(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[dict]:
    """The outputs of all code cells; they run in a kernel of their own."""
    for name, value in (variables | {"PYTHONPATH": str(CODE_FOLDER), "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=90, kernel_name="python3").execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_it_trains_draws_the_bank_and_moves_a_digit(monkeypatch: pytest.MonkeyPatch):
    outputs = run(monkeypatch, NOTEBOOK_STEPS="4")
    text = "".join(output.get("text", "") for output in outputs)
    assert "step 4/4" in text
    assert text.count(" in the middle, ") == 3
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_without_a_run_it_stops_with_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(CellExecutionError, match=f"error: {tmp_path}: is no run"):
        run(monkeypatch, NOTEBOOK_RUN=str(tmp_path))


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
