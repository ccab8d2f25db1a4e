"""Runs that repeat to the bit, TF32 on purpose, the allocator: what is set, and that the run says so."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.ranks import losses, train_on

SHOW = (
    "import trainer, os; "
    "print(os.environ.get('PYTORCH_ALLOC_CONF'), os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))"
)


def test_a_deterministic_run_repeats_to_the_bit_and_refuses_what_cannot(translution, config_file, tmp_path):
    seen = []
    for name in ("one", "two"):
        words = ("deterministic=true", f"run_dir={tmp_path / name}")
        done = translution("train", config_file, *words)
        assert done.code == 0, done.err
        seen.append(losses(tmp_path / name))
        assert torch.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError, match="put_"):  # one that torch has only in an unordered form
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    assert seen[0] == seen[1]
    record = json.loads((tmp_path / "one" / "version.json").read_text())
    assert (record["deterministic"], record["tf32"], record["device"]) == (True, False, "cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_tf32_is_off_unless_it_is_asked_for(translution, config_file, tmp_path):
    for words, expected in (((), False), (("tf32=true",), True)):
        run = tmp_path / str(expected)
        assert translution("train", config_file, f"run_dir={run}", "train.steps=1", *words).code == 0
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is expected
        assert json.loads((run / "version.json").read_text())["tf32"] is expected


def test_two_deterministic_replicas_repeat_to_the_bit(config_file, tmp_path):
    runs = [tmp_path / name for name in ("one", "two")]
    words = [[str(config_file), "deterministic=true", f"run_dir={run}"] for run in runs]
    assert [end.codes for end in train_on(2, words, seconds=100)] == [[0, 0]] * 2
    assert losses(runs[0]) == losses(runs[1]) != []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, "expandable_segments:True None"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64 None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "None backend:native"),
    ],
)
def test_the_allocator_is_set_unless_the_user_has_set_it(given, shown):
    env = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name} | given
    printed = subprocess.run(
        [sys.executable, "-c", SHOW], env=env, capture_output=True, text=True, timeout=60
    )
    assert printed.stdout.strip() == shown
