"""The command, its refusals, and faults that it has to find."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from torch import Tensor

from launch.rehearse import before_submit
from launch.rehearse.before_submit import rehearse_before_submit
from launch.rehearse.run import rehearse_config
from launch.slurm.allocation import Allocation
from models.mixers.interface import Axes
from models.positions.interface import PositionConfig
from models.tokens import TokenGrid
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.plan import plan
from tests.launch.rehearse.nets import MIXER, VIT, config
from tests.toy_mixer import RelativeValues, RelativeValuesConfig

UNEVEN = {**VIT, "image_size": 12}  # 9 residue classes
HERE = "tests.launch.rehearse.test_run"


class Skipping(RelativeValues):
    """Rank 1 does not merge its softmax."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            self.combine = None
        return super().forward(x_BNC)


class SkippingConfig(RelativeValuesConfig):
    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> RelativeValues:
        return Skipping(dim, tokens.offsets(), self.heads, self.head_dim)


class Unsharded(RelativeValues):
    """Says nothing of its bank."""

    def axes(self) -> Axes:
        return {name: dims for name, dims in super().axes().items() if name != "bank"}


class UnshardedConfig(RelativeValuesConfig):
    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> RelativeValues:
        return Unsharded(dim, tokens.offsets(), self.heads, self.head_dim)


@pytest.fixture
def rehearse(tmp_path, translution: Callable[..., Any]):
    """Runs the command on the small net, with another mixer if one is given."""

    def run(*words: str, mixer: dict[str, Any] | str = MIXER, device: str = "cpu", model: Any = VIT) -> Any:
        mixer = {"kind": mixer} if isinstance(mixer, str) else mixer
        values = {"device": device, "model": {**model, "mixer": mixer}, "data": {"kind": "synthetic"}}
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**values, "train": {"batch": 8}}))
        return translution("rehearse", path, *words)

    return run


def test_ranks_stand_beside_their_own_plans(rehearse):
    shown = rehearse(
        "parallel.offset=2", "--devices-per-node", "2", "--ranks", "all-distinct", "--json", model=UNEVEN
    )
    assert shown.code == 0, shown.err
    values = json.loads(shown.out)
    assert [rank["rank"] for rank in values["ranks"]] == [0, 1]
    assert values["disagreement"] is None
    for rank in values["ranks"]:
        rows = {figure["name"]: (figure["rehearsed"], figure["planned"]) for figure in rank["figures"]}
        for exact in ("parameters", "offset all_reduce"):
            assert rows[exact][0] == rows[exact][1] > 0
        assert rows["FLOPs"][0] == pytest.approx(rows["FLOPs"][1], rel=0.1)
    flops = {rank["figures"][2]["planned"] for rank in values["ranks"]}
    assert len(flops) == 2  # each rank has a plan of its own


def test_replicas_agree_also_while_they_save_and_load(rehearse):
    words = ("parallel.engine=deepspeed", "parallel.zero=1", "precision=bf16", "--devices-per-node", "2")
    shown = rehearse(*words, "--nodes", "1", "--ranks", "0,1")
    assert shown.code == 0, shown.err
    assert "All 2 ranks agree" in shown.out


def test_the_planner_knows_every_rank():
    net = config(UNEVEN).model
    ranks = [plan(net, ParallelConfig(offset=4), Mesh(1, 4, 1, r), 8, own_rank=True) for r in range(4)]
    fullest = plan(net, ParallelConfig(offset=4), Mesh(1, 4), 8)
    banks = [rank.held["banks"] for rank in ranks]
    assert sum(banks) >= fullest.parameters["banks"]
    assert len({rank.share.training for rank in ranks}) == 4
    assert max(banks) == fullest.held["banks"]
    assert max(rank.share.training for rank in ranks) == fullest.share.training


def test_the_report_tells_the_peak_and_every_collective(rehearse):
    shown = rehearse("parallel.offset=2", "--devices-per-node", "2", "--collectives")
    for words in ("Alive at the peak of rank", "gradients", "The largest tensors then", "in order", "merge"):
        assert words in shown.out, words
    assert shown.code == 0, shown.err


def test_a_rank_that_skips_a_collective_is_named_with_both_stacks(rehearse):
    shown = rehearse(
        "parallel.offset=2", "--devices-per-node", "2", "--ranks", "0,1", mixer=f"{HERE}:SkippingConfig"
    )
    assert shown.code != 0
    assert "ranks 0 and 1 differ in collective 1, so both would hang" in shown.err
    assert "rank 0: offset all_reduce of" in shown.err
    assert "sharding/offset.py" in shown.err  # where rank 0 merges
    assert "rank 1: offset all_reduce of" in shown.err  # what rank 1 does instead


def test_a_bank_that_is_not_sharded_is_named(rehearse):
    shown = rehearse("parallel.offset=2", "--devices-per-node", "2", mixer=f"{HERE}:UnshardedConfig")
    assert shown.code != 0
    assert "layers.0.mixer.bank [52, 16, 16] is a bank that is not sharded" in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "options", "error"),
    [
        (("parallel.tensor=4",), {}, "heads=2 is not divisible by parallel.tensor=4"),
        (("parallel.offset=3",), {}, "does not divide the 8 processes"),
        (("--ranks", "9"), {}, "--ranks 9: 9 is no rank of 0 … 7"),
        (("--scale", "1,8"), {}, "--scale: kernels are counted for a card in bf16, not for device=cpu"),
        (("--scale", "many"), {}, "--scale many: numbers of devices are needed"),
        ((), {"mixer": "tests.toy_mixer:PeekingConfig"}, "toy_mixer.py:"),
        ((), {"mixer": "tests.toy_mixer:FromFileConfig"}, "model: cannot be built: table.npy: No such file"),
    ],
)
def test_bad_input_gives_one_line(rehearse, words: tuple[str, ...], options: dict[str, Any], error: str):
    shown = rehearse(*words, "--nodes", "1", **options)
    assert shown.code != 0
    assert error in shown.err
    assert shown.err.count("\n") == 1


def test_a_table_of_clusters_tells_what_binds_and_the_days(rehearse, tmp_path):
    table, picture = tmp_path / "scale.csv", tmp_path / "scale.png"
    words = ("precision=bf16", "parallel.offset=2", "--scale", "1,2,4", "--devices-per-node", "2")
    shown = rehearse(*words, "--csv", str(table), "--plot", str(picture), device="auto")
    assert shown.code == 0, shown.err
    assert "Not on 1: parallel.offset=2" in shown.out
    assert "Counted, not measured, for NVIDIA H100 SXM" in shown.out
    header, one, two, four = (line.split(",") for line in table.read_text().splitlines())
    rows = [dict(zip(header, line, strict=True)) for line in (one, two, four)]
    assert rows[0]["seconds"] == ""
    assert float(rows[1]["network"]) == 0 < float(rows[2]["network"])  # the second node is far away
    assert float(rows[1]["efficiency"]) == 1 > float(rows[2]["efficiency"])
    assert picture.stat().st_size > 1000


def test_submit_is_told_in_a_line_and_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    found, calls = [], []

    def rehearse_once(config: Any, cluster: Any, *options: Any) -> Any:
        calls.append(cluster.memory)
        if not found:
            found.append(rehearse_config(config, cluster, *options))
        return dataclasses.replace(found[0], cluster=cluster)

    monkeypatch.setattr(before_submit, "rehearse_config", rehearse_once)
    allocation, run = Allocation(tasks_per_node=2), config(VIT, offset=2)
    line = rehearse_before_submit(run, allocation, None, force=False)
    assert line.startswith("rehearsal: rank")
    with pytest.raises(UserError, match=r"needs .* a device has 50 kB; .*--no-rehearsal submits"):
        rehearse_before_submit(run, allocation, 50e3, force=False)
    assert "a device has 50 kB" in rehearse_before_submit(run, allocation, 50e3, force=True)
    assert calls == [float("inf"), 50e3, 50e3]
