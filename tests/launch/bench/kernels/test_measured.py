"""Layers measured beside their counts; here on the CPU, by the loop."""

import pytest
import torch

from launch.bench.kernels import measured
from launch.bench.kernels.measured import layer_seconds, measure_row, seconds_of, show_measured
from launch.bench.kernels.rows import Size
from models.ops.cards import CARDS

CPU = torch.device("cpu")


def test_a_row_holds_both_and_their_ratio(capsys):
    row = measure_row(Size("7x7", 64, 1), "full", CARDS["h100"], CPU, 2)
    both = row["measured_milliseconds"], row["counted_milliseconds"]
    assert min(both) > 0
    assert row["measured_over_counted"] == pytest.approx(both[0] / both[1])
    assert 0 < row["measured_milliseconds_forward"] < both[0]
    show_measured([row], "this CPU", 2)
    assert "full 7x7, C=64, B=1" in capsys.readouterr().out


def test_passes_that_warm_up_are_not_timed(monkeypatch):
    times = iter([100.0] * 2 * measured.WARM_UP + [1.0, 5.0, 2.0, 6.0, 3.0, 70.0])

    def clock(action, device):
        action()
        return next(times)

    monkeypatch.setattr(measured, "seconds_of", clock)
    assert layer_seconds(Size("7x7", 64, 1).mixer("alpha-8"), 1, CPU, 3) == (2.0, 6.0)


def test_time_includes_the_action():
    done = []
    assert seconds_of(lambda: done.append(sum(range(1000))), CPU) > 0
    assert done
