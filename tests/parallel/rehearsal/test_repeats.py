"""Walks that are not made again leave the record as it is when they are."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from launch.rehearse.rank import Part, RankReport, rehearse_rank
from models.ops.streamed import PairWalk
from parallel.rehearsal import fakes
from tests.launch.rehearse.nets import GPT, MIXER, config

MIXERS = {
    "in-bands": MIXER | {"share": "log"},
    "cut-batch": MIXER | {"workspace": 8_000},
    "kept-projections": MIXER | {"memory": "keep"},
}


def _record(report: RankReport) -> Any:
    calls = [each.same for each in report.collectives + report.rare]
    work = report.work._replace(seconds=0.0, launching=0.0)
    return report.peak, report.evaluation, report.saving, work, calls


@pytest.mark.parametrize("name", MIXERS)
def test_repeated_walks_leave_the_record_that_walks_leave(name: str, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    forward = PairWalk.forward

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return forward(*arguments)

    monkeypatch.setattr(PairWalk, "forward", counted)
    part = Part(config({**GPT, "tokens": 6, "mixer": MIXERS[name]}, batch=8, accumulate=2), 1, 0, None)
    repeated = rehearse_rank(part)
    assert (
        len(made) == 2
    )  # one of training, one of evaluation: the net has two layers, a step two micro-batches
    monkeypatch.setattr(fakes, "repeated_walks", lambda recorder: nullcontext())
    assert _record(repeated) == _record(rehearse_rank(part))
    assert len(made) == 2 + 2 * 2 * 2 + 2
