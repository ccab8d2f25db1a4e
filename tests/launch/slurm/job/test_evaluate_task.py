"""The evaluation job: how many devices it asks for, and its ranks evaluating together."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from launch.slurm.allocation import Allocation
from launch.slurm.job.evaluate_task import EvaluateTask, _evaluation_mesh
from launch.slurm.runs.job_record import SUBMITTED_CONFIG, JobRecord, write_record
from parallel.spawn import run_processes
from tests.tiny import TINY
from trainer.config.run import load_config
from trainer.evaluation import evaluate_new_checkpoints
from trainer.run_directory.awaited import await_checkpoints, is_awaited


@pytest.mark.parametrize(("gigabytes", "devices"), [(180, 1), (80, 1), (40, 2), (24, 3), (8, 8)])
def test_it_gets_as_many_gpus_as_the_weights_need(gigabytes: int, devices: int, tmp_path: Path):
    """15.6 B parameters are 62 GB without gradients and moments; 8 GB are too little even for an eighth."""
    config = load_config("configs/imagenet/b16_full.yaml", ["train.evaluate_batch=32"])
    (tmp_path / SUBMITTED_CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    allocation = Allocation(nodes=4, gpus_per_node=8, device_memory_gb=gigabytes)
    assert _evaluation_mesh(tmp_path, allocation).model == devices


def _as_task(run: Path) -> None:
    rank = {"SLURM_PROCID": os.environ["RANK"], "SLURM_LOCALID": os.environ["RANK"], "SLURM_NTASKS": "2"}
    node = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": socket.gethostname(), "SLURM_JOB_NUM_NODES": "1"}
    given = {key: os.environ[key] for key in ("MASTER_ADDR", "MASTER_PORT")}
    os.environ |= rank | node
    from launch.slurm.job import evaluate_task

    evaluate_task.slurm_rendezvous = lambda: given
    assert EvaluateTask(run, 3)() == 0


def test_two_ranks_evaluate_every_checkpoint_as_one_does(tmp_path: Path, translution: Callable):
    run, other = tmp_path / "run", tmp_path / "other"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert translution("train", tmp_path / "tiny.yaml", f"run_dir={run}").code == 0
    shutil.copy(run / "config.yaml", run / SUBMITTED_CONFIG)
    write_record(run, JobRecord("", Allocation().model_dump()))
    shutil.copytree(run, other)
    assert evaluate_new_checkpoints(other, 3) == [3, 6]
    await_checkpoints(run, 3)
    run_processes(partial(_as_task, run), 2, seconds=60)
    assert not is_awaited(run, 9)
    found, expected = (
        [json.loads(line) for line in (each / "evaluations.jsonl").read_text().splitlines()]
        for each in (run, other)
    )
    assert [row["step"] for row in found] == [3, 6]
    for one, two in zip(expected, found, strict=True):
        for name, measures in one["evaluation"].items():
            assert two["evaluation"][name] == pytest.approx(measures, rel=1e-4)
