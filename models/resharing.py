"""Weights of one share rule turned into those of another: entering sharing, leaving it, refining it.

An entry of the new bank is the mean, over its offsets, of the old bank's entries. Where one old entry serves
all of them this is a copy, so a rule whose buckets lie inside the old one's keeps the function exactly.
Source: arXiv 2510.10060 has a matrix per offset; sharing is an addition.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.mixers.interface import Mixer
from models.offsets import OffsetGrid
from models.stages import LayerSpec
from models.transformer import ModelConfig, build_model

Sources = tuple[
    Counter[int], ...
]  # of each new entry: the old entries, with how many of its offsets use each

_NOT_OF_WEIGHTS = {"share", "memory", "workspace", "compiled", "kernel", "init", "dropout"}


def entry_sources(old: OffsetGrid, new: OffsetGrid) -> Sources:
    """Where the entries of a bank come from; raises ValueError for grids of different tokens."""
    tokens = [(grid.shape, grid.causal, grid.class_token) for grid in (old, new)]
    if tokens[0] != tokens[1]:
        raise ValueError(f"{old} and {new} differ in more than how offsets share entries")
    found: list[Counter[int]] = [Counter() for _ in range(new.num_entries)]
    for offset in itertools.product(*(range(0 if new.causal else 1 - n, n) for n in new.shape)):
        found[new.entry(offset)][old.entry(offset)] += 1
    if new.class_token:
        for before, after in zip(old.special_entries, new.special_entries, strict=True):
            found[after][before] += 1
    return tuple(found)


def adapt_bank(bank: Tensor, sources: Sources, entries: Sequence[int] | None = None) -> Tensor:
    """bank[K, …] of the old rule → [K', …] of the new one; with `entries`, only these new entries."""
    wanted = range(len(sources)) if entries is None else entries
    adapted = bank.new_empty((len(wanted), *bank.shape[1:]))
    for place, entry in enumerate(wanted):
        counts = sources[entry]
        if len(counts) == 1:
            adapted[place] = bank[next(iter(counts))]
            continue
        total = sum(bank[old].double() * count for old, count in counts.items())
        adapted[place] = total / counts.total()
    return adapted


def bank_sources(old: ModelConfig, new: ModelConfig) -> dict[str, Sources]:
    """The sources of every bank of a net, by parameter name.

    Raises ValueError, with the key and both values, for nets that differ in more than their share rules (and
    in what leaves weights alone, such as dropout).
    """
    refuse_other_nets(old, new)
    with torch.device("meta"):
        before, after = build_model(old), build_model(new)
    found: dict[str, Sources] = {}
    for path, mixer in after.named_modules():
        if isinstance(mixer, Mixer):
            former = before.get_submodule(path)
            for name, dims in mixer.axes().items():
                if "entry" in dims.values():
                    found[f"{path}.{name}"] = entry_sources(_grid(former), _grid(mixer))
    return found


def adapt_state(old: ModelConfig, new: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of net `old` as one of net `new`; raises ValueError as `bank_sources` does."""
    sources = bank_sources(old, new)
    return {
        name: adapt_bank(tensor, sources[name]) if name in sources else tensor
        for name, tensor in tensors.items()
    }


def refuse_other_nets(old: ModelConfig, new: ModelConfig) -> None:
    """Raises ValueError, with the key and both values, unless `old`'s weights can become `new`'s."""
    theirs, mine = _weight_keys(old), _weight_keys(new)
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        there, here = theirs.get(key, "not set"), mine.get(key, "not set")
        if there != here:
            shown = key if old.stages or new.stages else key.removeprefix("layers[0].")
            raise ValueError(f"model.{shown} is {there} there and {here} here; only mixer.share may differ")


def _weight_keys(config: ModelConfig) -> dict[str, Any]:
    """What the meaning of a net's weights depends on; layers as they are, however stages write them."""
    top = config.model_dump(mode="json", exclude={"mixer", "stages", "position"})
    found = _flat(top, "") | _flat({"position": config.embedded_position().model_dump(mode="json")}, "")
    for number, spec in enumerate(config.layer_specs()):
        found |= {f"layers[{number}].{key}": value for key, value in _layer_keys(spec).items()}
    return found


def _layer_keys(spec: LayerSpec) -> dict[str, Any]:
    sections = {"mixer": spec.mixer, "position": spec.position, "reduce": spec.reduce}
    return _flat({name: each and each.model_dump(mode="json") for name, each in sections.items()}, "")


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key not in _NOT_OF_WEIGHTS:
            flat[f"{prefix}{key}"] = value
    return flat


def _grid(mixer: Any) -> OffsetGrid:
    assert mixer.schedule is not None
    return mixer.schedule.grid
