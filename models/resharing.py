"""Weights of one net turned into those of another: other share rules, another grid, from self-attention.

An entry of the new bank is the mean, over its offsets, of the old bank's entries. Where one old entry serves
all of them this is a copy, so a rule whose buckets lie inside the old one's keeps the function exactly. An
offset that the old grid does not have takes the nearest one that it has. From self-attention every entry is
its one matrix, which keeps the function too.
Source: arXiv 2510.10060 has a matrix per offset; sharing is an addition.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.ablations.pair_grid import PairGrid
from models.mixers.attention import Attention
from models.mixers.interface import Mixer
from models.offsets import OffsetGrid
from models.stages import LayerSpec
from models.transformer import ModelConfig, build_model

Sources = tuple[
    Counter[int], ...
]  # of each new entry: the old entries, with how many of its offsets use each

_GRID = {"image_size", "tokens"}
_NOT_OF_WEIGHTS = {"share", "memory", "workspace", "compiled", "kernel", "init", "dropout"}


class BankOrigin(NamedTuple):
    """The parameter that a bank comes from, and of each entry the old ones; a `matrix` [D, C] of
    self-attention counts as a bank [1, C, D]."""

    name: str
    sources: Sources
    matrix: bool = False


def entry_sources(old: OffsetGrid, new: OffsetGrid) -> Sources:
    """Where the entries of a bank come from; raises ValueError for grids of other kinds of tokens, and for
    entries by pairs on grids that are not equal."""
    if isinstance(old, PairGrid) or isinstance(new, PairGrid):
        if old != new:
            raise ValueError(f"{old} cannot become {new}: entries are those of pairs, not of offsets")
        return tuple(Counter({entry: 1}) for entry in range(new.num_entries))
    kinds = [(len(grid.shape), grid.causal, grid.class_token) for grid in (old, new)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{old} and {new} differ in more than their sizes and how offsets share entries")
    found: list[Counter[int]] = [Counter() for _ in range(new.num_entries)]
    for offset in itertools.product(*(range(0 if new.causal else 1 - n, n) for n in new.shape)):
        nearest = tuple(max(1 - n, min(delta, n - 1)) for delta, n in zip(offset, old.shape, strict=True))
        found[new.entry(offset)][old.entry(nearest)] += 1
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


def bank_origins(old: ModelConfig, new: ModelConfig) -> dict[str, BankOrigin]:
    """Where every bank of a net comes from, by parameter name; its other parameters keep theirs.

    Raises ValueError, with the key or parameter and both values, unless `old`'s weights can become `new`'s.
    """
    refuse_other_nets(old, new)
    with torch.device("meta"):
        before, after = build_model(old), build_model(new)
    found: dict[str, BankOrigin] = {}
    for path, mixer in after.named_modules():
        if isinstance(mixer, Mixer):
            former = before.get_submodule(path)
            for name, dims in mixer.axes().items():
                if "entry" in dims.values():
                    found[f"{path}.{name}"] = _bank_origin(former, mixer, path, name)
    theirs = {name: tuple(parameter.shape) for name, parameter in before.named_parameters()}
    for name, parameter in after.named_parameters():
        there, here = theirs.get(name), tuple(parameter.shape)
        if name not in found and there != here:
            raise ValueError(f"{name} is {there or 'not'} there and {here} here, which cannot be adapted")
    return found


def _bank_origin(former: nn.Module, mixer: Mixer, path: str, name: str) -> BankOrigin:
    if isinstance(former, Attention):
        one = Counter({0: 1})
        weight = f"{path}.{name.removesuffix('_bank')}.weight"
        return BankOrigin(weight, (one,) * _grid(mixer).num_entries, matrix=True)
    return BankOrigin(f"{path}.{name}", entry_sources(_grid(former), _grid(mixer)))


def adapt_state(old: ModelConfig, new: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of net `old` as one of net `new`; raises ValueError as `bank_origins` does."""
    origins = bank_origins(old, new)
    used = {origin.name for origin in origins.values()}
    adapted = {name: tensor for name, tensor in tensors.items() if name not in used}
    for name, origin in origins.items():
        bank = tensors[origin.name]
        adapted[name] = adapt_bank(bank.T[None] if origin.matrix else bank, origin.sources)
    return adapted


def refuse_other_nets(old: ModelConfig, new: ModelConfig) -> None:
    """Raises ValueError, with the key and both values, unless `old`'s weights can become `new`'s."""
    theirs, mine = _weight_keys(old), _weight_keys(new)
    for number in range(min(old.depth, new.depth)):
        _leave_out_self_attention(theirs, mine, f"layers[{number}].mixer")
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        there, here = theirs.get(key, "not set"), mine.get(key, "not set")
        if there != here:
            shown = key if old.stages or new.stages else key.removeprefix("layers[0].")
            raise ValueError(
                f"model.{shown} is {there} there and {here} here; only the grid and mixer.share may differ"
            )


def _leave_out_self_attention(theirs: dict[str, Any], mine: dict[str, Any], mixer: str) -> None:
    """Let a layer of self-attention become full Translution of the same heads."""
    kinds = theirs.get(f"{mixer}.kind"), mine.get(f"{mixer}.kind")
    if kinds != ("attention", "translution") or theirs[f"{mixer}.bias"] or mine[f"{mixer}.rank"] is not None:
        return
    if mine[f"{mixer}.index"] != "offset":
        return
    for key in ("kind", "bias", "relative", "rank", "index"):
        theirs.pop(f"{mixer}.{key}", None)
        mine.pop(f"{mixer}.{key}", None)


def _weight_keys(config: ModelConfig) -> dict[str, Any]:
    """What the meaning of a net's weights depends on; layers as they are, however stages write them."""
    top = config.model_dump(mode="json", exclude={"mixer", "stages", "position", *_GRID})
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
