"""Steps whose loss or gradient is not finite: skipped, and if they go on, stepped over as a whole."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.engine.optimizer import OptimizerConfig
from parallel.engine.torch_engine import TorchEngine
from tests.faulty_ranks import exit_codes, is_rank, on_fetch, started
from trainer.data.source import Batch
from trainer.faults.fault_log import read_faults
from trainer.run_directory.run_directory import RunDirectory

ENGINES = {
    "torch": [],
    "offset": ["parallel.offset=2"],
    **{f"zero-{zero}": ["parallel.engine=deepspeed", f"parallel.zero={zero}"] for zero in (0, 2, 3)},
}


def spoil_batches(first: int, last: int, ranks: tuple[int, ...]) -> None:
    """Not-a-numbers in a range of the micro-batches of some ranks."""

    def spoil(count: int, batch: Batch) -> Batch:
        bad = first <= count <= last and any(map(is_rank, ranks))
        return Batch(batch.inputs * math.nan, batch.targets) if bad else batch

    on_fetch(spoil)


def _soak_unless(name: str, *always: str) -> Any:
    return name if name in always else pytest.param(name, marks=pytest.mark.soak)


def rows(run: Path) -> list[dict]:
    return [row for row in RunDirectory(run).read_metrics() if "evaluation" not in row]


@pytest.mark.parametrize("engine", [_soak_unless(name, "torch", "zero-3") for name in ENGINES])
def test_a_bad_batch_of_one_rank_is_skipped_by_all_and_logged(engine: str, config_file: Path, tmp_path: Path):
    ranks_of_it = (0, 1) if engine == "offset" else (1,)  # which share their data
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [config_file, f"run_dir={run}", "train.check_every=1", *ENGINES[engine]]
    with started(2, arguments, partial(spoil_batches, 4, 4, ranks_of_it), log) as ranks:
        assert exit_codes(ranks, 100) == [0, 0], log.read_text()
    assert [(row["step"], row["samples"]) for row in rows(run)] == [(n, 8 * n) for n in range(1, 7)]
    assert [row["step"] for row in rows(run) if row.get("skipped")] == [4]
    assert all(math.isfinite(row["loss"]) for row in rows(run) if row["step"] != 4)
    assert "step 4 skipped: loss nan, gradient norm" in log.read_text()
    assert "samples 24 to 31; 1 skipped so far" in log.read_text()
    (fault,) = read_faults(run)
    assert (fault["fault"], fault["step"], fault["samples"]) == ("skipped", 4, [24, 31])


@pytest.mark.parametrize("engine", [_soak_unless(name, "torch") for name in ("torch", "zero-3")])
def test_bad_data_is_stepped_over_from_the_last_good_checkpoint(
    engine: str, config_file: Path, tmp_path: Path
):
    """Bad are batches 5 to 7. After two skipped steps the run goes back to step 3, meets the last bad batch,
    and trains on what comes after."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [config_file, f"run_dir={run}", "train.max_skips=2", *ENGINES[engine]]
    with started(2, arguments, partial(spoil_batches, 5, 7, (1,)), log) as ranks:
        assert exit_codes(ranks, 100) == [0, 0], log.read_text()
    assert "went back to the checkpoint of step 3 after 2 skipped steps; goes on with sample 48" in (
        log.read_text()
    )
    before, after = [8, 16, 24], [56, 64, 72]
    assert [(row["step"], row["samples"]) for row in rows(run)] == list(enumerate(before + after, 1))
    assert [row["step"] for row in rows(run) if row.get("skipped")] == [4]
    faults = ["skipped", "skipped", "went back", "skipped"]
    assert [fault["fault"] for fault in read_faults(run)] == faults


def test_a_run_that_going_back_does_not_help_stops_with_one_line(config_file: Path, tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [config_file, f"run_dir={run}", "train.max_skips=2"]
    with started(1, arguments, partial(spoil_batches, 4, 99, (0,)), log) as ranks:
        assert exit_codes(ranks, 100) == [2], log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert "not finite since step 4 again, after going back to the last checkpoint; lower train.lr=" in line


def test_a_skipped_step_changes_no_weight_and_no_moment_but_counts_as_a_step():
    torch.manual_seed(0)
    engine = TorchEngine(torch.nn.Linear(3, 2), OptimizerConfig(), torch.device("cpu"))

    def step(value: float) -> None:
        engine.backward(engine.net(torch.full((1, 3), value)).sum())
        engine.update()

    step(1.0)
    before = {k: {n: t.clone() for n, t in ts.items()} for k, ts in engine.state().tensors.items()}
    step(math.nan)
    torch.testing.assert_close(engine.state().tensors, before, rtol=0, atol=0)
    assert engine.steps_done == 2
    assert {float(state["step"]) for state in engine.optimizer.state.values()} == {2.0}
    step(1.0)
    assert not torch.equal(engine.state().tensors["weight"]["weight"], before["weight"]["weight"])
