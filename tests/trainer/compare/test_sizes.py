"""Nets are scaled until parameters, or FLOPs, agree within 2 %."""

import pytest

from parallel.errors import UserError
from tests.tiny import TINY
from trainer.compare.sizes import TOLERANCE, parameters, scaled, training_flops
from trainer.config.run import parse_config, with_values

TRANSLUTION = {"kind": "translution", "heads": 2, "head_dim": 8}
RIVALS = {
    "attention": {"model.mixer": {"kind": "attention", "heads": 3, "head_dim": 4}},
    "rope": {"model.mixer": {"kind": "attention", "heads": 2, "head_dim": 8}, "model.position": "rope"},
    "xca": {"model.mixer": {"kind": "xca", "heads": 4}},
    "stages": {"model.stages": [{"layers": 2, "mixer": {"kind": "tssa", "heads": 2}}]},
}
BASE = parse_config(
    TINY
    | {"name": "net", "model": TINY["model"] | {"width": 16, "depth": 2, "mlp": 32, "mixer": TRANSLUTION}}
)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("measure", [parameters, training_flops])
def test_the_width_grows_until_they_agree(rival: str, measure):
    net, target = with_values(BASE, RIVALS[rival]), 40_000 if measure is parameters else 1_000_000
    values = scaled(net, target, measure, "width")
    grown = with_values(net, values)
    assert abs(measure(grown) - target) <= TOLERANCE * target
    heads = getattr(net.model.mixer, "heads", 1)
    assert grown.model.width % heads == 0
    assert grown.model.depth == 2


def test_the_depth_grows_and_the_feed_forward_makes_up_the_rest():
    values = scaled(BASE, 120_000, parameters, "depth")
    grown = with_values(BASE, values)
    assert abs(parameters(grown) - 120_000) <= TOLERANCE * 120_000
    assert grown.model.width == 16
    assert grown.model.depth > 2


def test_a_net_that_agrees_is_left_alone():
    assert scaled(BASE, 1.01 * parameters(BASE), parameters, "width") == {}


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match=r"net: no width comes within 2% of 10"):
        scaled(BASE, 10, parameters, "width")
    staged = with_values(BASE, RIVALS["stages"])
    with pytest.raises(UserError, match=r"model.stages fixes the depth"):
        scaled(staged, 1e6, parameters, "depth")
