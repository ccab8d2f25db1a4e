"""Tokens that are dropped by drawn decisions: the ranks of a mesh draw alike."""

from pathlib import Path

import pytest
import yaml

from tests.ranks import losses, train_on
from tests.tiny import TINY

ATTENTION = {"kind": "attention", "heads": 2, "head_dim": 4}


@pytest.mark.soak
@pytest.mark.parametrize("reduce", [{"kind": "dynamicvit", "ratio": 0.5}, {"kind": "random", "keep": 0.5}])
def test_drawn_decisions_give_the_losses_of_one_process_on_a_mesh(reduce: dict, tmp_path: Path):
    stages = [{"layers": 1, "mixer": ATTENTION, "reduce": reduce}, {"layers": 1, "mixer": ATTENTION}]
    model = {key: value for key, value in TINY["model"].items() if key not in ("depth", "mixer")}
    path = tmp_path / "dropped.yaml"
    path.write_text(yaml.safe_dump(TINY | {"model": model | {"stages": stages}}))
    for processes, words in ((1, []), (2, ["parallel.tensor=2", "parallel.activations=block"])):
        run = f"run_dir={tmp_path / str(processes)}"
        (ended,) = train_on(processes, [[str(path), run, *words]], seconds=60)
        assert ended.codes == [0] * processes, ended.errors
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
