"""Random configs: a rehearsal says what the real ranks do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.launch.rehearse.nets import ATTENTION, GPT, MIXER, VIT, config, zero
from tests.launch.rehearse.test_rank import check

MIXERS = [MIXER, MIXER | {"rank": 4}, MIXER | {"relative": "kv"}, MIXER | {"memory": "keep"}, ATTENTION]


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, Any]:
    """Processes and a config that can run on them."""
    processes = draw(st.sampled_from([1, 2, 4]))
    offset = draw(st.sampled_from([n for n in (1, 2, 4) if processes % n == 0]))
    tensor = draw(st.sampled_from([n for n in (1, 2) if processes // offset % n == 0]))
    precision = draw(st.sampled_from(["fp32", "bf16"]))
    stages = [None, 1, 2, 3] if precision == "bf16" else [None, 0, 1, 2, 3]
    stage = draw(st.sampled_from(stages))
    engine = {} if stage is None else zero(stage)
    activations = draw(st.sampled_from(["none", "block", "operator"]))
    net, mixer = draw(st.sampled_from([VIT, GPT])), draw(st.sampled_from(MIXERS))
    accumulate = draw(st.sampled_from([1, 2, 4]))
    parallel = {"offset": offset, "tensor": tensor, "activations": activations, **engine}
    model = {**net, "mixer": mixer}
    return processes, config(model, 16 * accumulate, accumulate, precision, **parallel)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@seed(20)
@settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(runs())
def test_a_random_run_is_rehearsed_as_it_runs(run: tuple[int, Any]):
    processes, drawn = run
    check(processes, {str(drawn.parallel): drawn})
