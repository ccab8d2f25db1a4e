"""Scales a net until its parameters, FLOPs or time of a step are those of another net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import lcm, log
from typing import Any, Literal, NamedTuple

from models.mixers.interface import MixerConfig
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.flops import sample_flops
from parallel.planner.plan import layer_kinds
from trainer.config.errors import ConfigError
from trainer.config.run import RunConfig, with_values

TOLERANCE = 0.02
_LARGEST = 1 << 16  # width, and many more layers than any net has
_HEAD_WIDTHS = (1.0, 0.9, 1.1, 0.8, 1.25, 0.7, 1.4)  # of heads, relative to the net's width
Measure = Callable[[RunConfig], float]


class Candidate(NamedTuple):
    """A net of another size: the config values that make it, what was measured, and how far its proportions
    are from the original's (0: not at all)."""

    values: dict[str, Any]
    quantity: float
    distortion: float


def parameters(config: RunConfig) -> float:
    """The parameters of the whole net."""
    return sum(layer_kinds(config.model).held(Mesh()).values())


def training_flops(config: RunConfig) -> float:
    """FLOPs of training on one sample, without recomputation; raises UserError where they are not known."""
    net = layer_kinds(config.model)
    flops = sample_flops(net, Mesh(), ParallelConfig()).model
    for mixer, why in net.not_planned.items():
        raise UserError(f"{config.name}: the FLOPs of {mixer} are not known: {why}")
    return flops


def scaled(
    config: RunConfig, target: float, measure: Measure, scale: Literal["width", "depth"]
) -> dict[str, Any]:
    """The config values that make the net's quantity `target`, within TOLERANCE; none if it is already.

    Width or depth comes as near as it can with the net's proportions; then the width of the feed-forward
    makes up the rest. Raises UserError where no size comes near enough.
    """
    if _near(measure(config), target):
        return {}
    if scale == "depth" and config.model.stages:
        raise UserError(f"{config.name}: model.stages fixes the depth; write scale: width")
    grown = _width if scale == "width" else _depth

    def in_proportion(size: int) -> float | None:
        sizes = sorted(_proportions(config, grown(config, size), scale), key=lambda each: each[1])
        possible = (_quantity(config, values, measure) for values, _ in sizes)
        return next((quantity for quantity in possible if quantity is not None), None)

    found: list[Candidate] = []
    for size in _bracket(in_proportion, target):
        for values, distortion in _proportions(config, grown(config, size), scale):
            quantity = _quantity(config, values, measure)
            if quantity is None:
                continue
            found.append(Candidate(values, quantity, distortion))
    near = [each for each in found if _near(each.quantity, target)]
    if not near:
        tuned = (_tuned(config, each, target, measure) for each in _nearest(found, target))
        near = [each for each in tuned if each and _near(each.quantity, target)]
    if not near:
        closest = min((each.quantity for each in found), key=lambda q: abs(q - target), default=0.0)
        raise UserError(
            f"{config.name}: no {scale} comes within {TOLERANCE:.0%} of {target:,.4g}; the nearest gives "
            f"{closest:,.4g}; scale the other one, or put the net into compare.keep"
        )
    return min(near, key=lambda each: (each.distortion, abs(each.quantity - target))).values


def _near(quantity: float, target: float) -> bool:
    return abs(quantity - target) <= TOLERANCE * target


def _quantity(config: RunConfig, values: dict[str, Any], measure: Measure) -> float | None:
    """None where a net of these values cannot be built."""
    try:
        return measure(with_values(config, values))
    except ConfigError:
        return None
    except UserError as error:
        if "model:" in str(error):
            return None
        raise


def _width(config: RunConfig, size: int) -> dict[str, Any]:
    """A net of so many units of width: every mixer's heads, and the feed-forward, in proportion."""
    model = config.model
    width = size * _unit(config)
    return _of_width(config, width, width / model.width, 1)


def _of_width(config: RunConfig, width: int, heads: float, rounded: int) -> dict[str, Any]:
    """With heads so many times as wide as they were, their width a multiple of `rounded`."""
    model, step = config.model, config.parallel.offset * config.parallel.tensor
    mlp = model.mlp * width / model.width
    values: dict[str, Any] = {"model.width": width, "model.mlp": max(1, round(mlp / step)) * step}
    mixer = model.mixer.of_head_width(heads, rounded)
    if mixer != model.mixer:
        values["model.mixer"] = _written(mixer)
    for number, stage in enumerate(model.stages or ()):
        if stage.mixer and (own := stage.mixer.of_head_width(heads, rounded)) != stage.mixer:
            values[f"model.stages[{number}].mixer"] = _written(own)
    return values


def _written(mixer: MixerConfig) -> dict[str, Any]:
    return mixer.model_dump(mode="json", exclude_unset=True) | {"kind": mixer.kind}


def _depth(config: RunConfig, size: int) -> dict[str, Any]:
    return {"model.depth": size}


def _unit(config: RunConfig) -> int:
    """The widths that all mixers of the net can divide into their heads are its multiples."""
    mixers = [config.model.mixer, *(stage.mixer for stage in config.model.stages or () if stage.mixer)]
    heads = [getattr(mixer, "heads", 1) for mixer in mixers]
    return lcm(*heads)


def _bracket(quantity: Callable[[int], float | None], target: float) -> list[int]:
    """Sizes on both sides of the target, for a quantity that grows with the size."""

    def below(size: int) -> bool:
        found = quantity(size)
        return found is None or found <= target  # a size that cannot be is too small for a head, or odd

    high = 1
    while high < _LARGEST and below(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) else (low, middle)
    around = max(2, low // 10)
    return [size for size in range(low - around, low + around + 1) if size > 0][: 2 * 8 + 1]


def _proportions(
    config: RunConfig, values: dict[str, Any], scale: Literal["width", "depth"]
) -> Iterator[tuple[dict[str, Any], float]]:
    """The same net with heads somewhat narrower or wider than in proportion."""
    if scale == "depth":
        yield values, 0.0
        return
    width, seen = values["model.width"], []
    for rounded in (1, 4):  # rotations want multiples of 4
        for factor in _HEAD_WIDTHS:
            varied = _of_width(config, width, width / config.model.width * factor, rounded)
            if varied not in seen:
                seen.append(varied)
                yield varied, abs(log(factor))


def _nearest(found: list[Candidate], target: float) -> list[Candidate]:
    """A few nets that are near to the target, and to the original's proportions."""
    return sorted(found, key=lambda each: abs(log(each.quantity / target)) + each.distortion)[:4]


def _tuned(config: RunConfig, near: Candidate, target: float, measure: Measure) -> Candidate | None:
    """The net with the width of the feed-forward that comes nearest to the target; None if it has none."""
    step = config.parallel.offset * config.parallel.tensor
    mlp = near.values.get("model.mlp", config.model.mlp)
    more = max(step, mlp // 4 // step * step)
    wider = _quantity(config, near.values | {"model.mlp": mlp + more}, measure)
    if wider is None or wider <= near.quantity:
        return None
    wanted = mlp + (target - near.quantity) / (wider - near.quantity) * more
    if not mlp / 4 <= wanted <= 4 * mlp:
        return None
    values = near.values | {"model.mlp": max(1, round(wanted / step)) * step}
    quantity = _quantity(config, values, measure)
    return None if quantity is None else Candidate(values, quantity, abs(log(wanted / mlp)))
