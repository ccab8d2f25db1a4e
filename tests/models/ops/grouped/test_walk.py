"""The grouped walk against the equations, its kernels in Triton's interpreter, and on the meta device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.mixers.counted_pass import count_pass
from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.ops.cards import CARDS
from tests.models.ops.grouped.interpreted import CASES

ROOT = Path(__file__).parents[4]
pytest.importorskip("triton")


@pytest.fixture(scope="module")
def interpreted():
    """All results of interpreted.py: one process, because triton is slow to import."""
    command = [sys.executable, "-m", "tests.models.ops.grouped.interpreted"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_equations(case, interpreted):
    assert interpreted["cases"][case] < 1e-6
    assert interpreted["same_as_equations"] < 1e-12


def test_halves_of_the_classes_merge_into_the_whole(interpreted):
    assert interpreted["halves"] < 1e-6


def test_a_query_without_pairs_here_has_no_weight(interpreted):
    assert interpreted["unseen"]


def test_bfloat16_errs_like_the_loop(interpreted):
    grouped, loop = interpreted["bfloat16"]
    assert grouped < 3 * loop  # the interpreter cuts where a card rounds


def test_two_runs_end_with_the_same_bits(interpreted):
    assert interpreted["repeats"]


def test_backward_leaves_what_forward_kept_as_it_was(interpreted):
    assert interpreted["kept_stays"]


@pytest.mark.parametrize("batch", [32, 256])
@pytest.mark.parametrize("width", [192, 768])
def test_a_layer_takes_at_most_2000_kernels(width, batch):
    with torch.device("meta"):
        grid = OffsetGrid((14, 14), class_token=True)
        layer = Translution(width, grid, width // 64, kernel="grouped")
    counted = count_pass(layer, batch, CARDS["h100"])
    assert counted.forward.kernels + counted.backward.kernels <= 2000
    assert counted.forward.by_operator["grouped_merge"] == counted.backward.by_operator["grouped_gradients"]


def test_temporaries_stay_within_the_workspace():
    with torch.device("meta"):
        layer = Translution(192, OffsetGrid((14, 14)), 3, kernel="grouped", workspace=200 << 20)
    x_bytes = 64 * 196 * 192 * 2
    assert count_pass(layer, 64, CARDS["h100"]).extra_bytes < (200 << 20) + 14 * x_bytes


@pytest.mark.parametrize(
    ("options", "card", "reason"),
    [
        ({"rank": 8}, "h100", "does not know α-Translution"),
        ({}, "a100", "9 and 10, this card has 8.0"),
        ({"head_dim": 4}, "h100", "no multiples of 8"),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(options, card, reason):
    with torch.device("meta"):
        layer = Translution(16, OffsetGrid((3,)), 1, kernel="grouped", **options)
    with pytest.raises(ValueError, match=rf"mixer\.kernel=grouped: .*{reason}"):
        count_pass(layer, 2, CARDS[card])


def test_the_cpu_refuses_it():
    layer = Translution(16, OffsetGrid((3,)), 1, head_dim=16, kernel="grouped")
    with pytest.raises(ValueError, match=r"mixer\.kernel=grouped: grouped products need a CUDA device"):
        layer(torch.randn(2, 3, 16))
