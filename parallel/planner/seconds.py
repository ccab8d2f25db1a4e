"""How long a rank computes in an optimizer step on a card: counted, not measured.

Mixers are counted kernel by kernel (models/mixers/counted_pass.py) at the micro-batch and the share of heads
and pairs that the rank has; everything else is its FLOPs over the card's rate.
"""

from __future__ import annotations

from models.mixers.cost import Load
from models.ops.cards import Card
from parallel.planner.layers import mixer_load
from parallel.planner.plan import Plan


def compute_seconds(run: Plan, card: Card) -> float:
    """Seconds of the kernels of all micro-batches of a step, for a bfloat16 run."""
    other = run.share.training * run.micro_batch
    mixers = 0.0
    again = run.parallel.activations != "none"
    for kind in run.net.kinds:
        load = mixer_load(kind.mixer, run.mesh, Load(run.micro_batch))
        counted = run.net.counted(kind.mixer, load, card)
        if counted is None:
            continue
        mixers += kind.repeats * (counted.seconds + again * counted.forward.seconds)
        cost = run.net.cost(kind.mixer, load)
        if cost is not None:
            other -= kind.repeats * ((3 + again) * cost.forward + cost.recomputed)
    return run.accumulate * (mixers + max(0, other) / card.rate)
