"""Tells from a state dict of the reference code which mixer, grid and net it holds.

The public code (arXiv 2510.10060) has a class per variant and saves no configuration, so everything
is read from keys and shapes. Only the number of heads is in neither (see `head_shape`). In this file a
`layer` is the state of one attention or Translution layer, without its prefix.
"""

from __future__ import annotations

import itertools
import math
import re

from torch import Tensor

from models.mixers.attention import AttentionConfig
from models.mixers.translution import RELATIVE, TranslutionConfig
from models.positions.interface import PositionConfig
from models.positions.learned import LearnedPosition, NoPosition
from models.positions.rope import RopePosition
from models.stages import Stage
from models.transformer import GPTConfig, ViTConfig

State = dict[str, Tensor]
MixerConfig = TranslutionConfig | AttentionConfig
HEAD_DIMS = (64, 8)  # of every public net; of the recorded layers in the tests


def layer_name(family: str, layer: State) -> str:
    """The name of a layer by its keys: vit/kv, gpt/lor_q, …; vit/attention where nothing is relative.

    A full-rank RoPE layer is called by what it computes: the public code never applies its rotation.
    """
    relative = "".join(letter for letter in "qkv" if bank_keys(layer, letter))
    low_rank = "to_qkv.weight" in layer and bool(relative)
    rope = any(key.endswith(".cos_cached") for key in layer) and (low_rank or not relative)
    return f"{family}/{'lor_' * low_rank}{'rope_' * rope}{relative or 'attention'}"


def bank_keys(layer: State, letters: str = "qkv") -> list[str]:
    return [key for key in layer if re.fullmatch(rf"to_[{letters}]2?\.unique_params", key)]


def layer_options(name: str) -> dict[str, object]:
    """relative, rope and whether the rank is low, of a layer name; raises ValueError for an unknown one."""
    match = re.fullmatch(r"(vit|gpt)/(lor_)?(rope_)?(\w+)", name)
    family, low_rank, rope, relative = match.groups() if match else (None,) * 4
    if relative not in RELATIVE or (rope and (family, relative) != ("vit", "v")):
        raise ValueError(
            f"reference layer {name!r}: vit/NAME or gpt/NAME is needed, NAME one of {' '.join(RELATIVE)} "
            "or lor_ and one of these, or vit/rope_v or vit/lor_rope_v"
        )
    return {"relative": relative, "low_rank": bool(low_rank), "rope": bool(rope and low_rank)}


def mixer_config(
    name: str, layer: State, heads: int | None, head_dim: int | None
) -> tuple[MixerConfig, PositionConfig]:
    """The mixer that `layer` holds the weights of, and the position that it applies; `name` as
    `layer_name` gives it."""
    shape = dict(zip(("heads", "head_dim"), head_shape(layer, heads, head_dim), strict=True))
    if name.endswith("attention"):
        return AttentionConfig(**shape), RopePosition() if "rope_" in name else NoPosition()
    options = layer_options(name)
    found = layer_options(layer_name(name[:3], layer))
    if any(options[key] != found[key] for key in ("relative", "low_rank")):
        raise ValueError(f"{name}: these are the keys of {layer_name(name[:3], layer)}: {', '.join(layer)}")
    rank = narrow_width(layer) // shape["heads"] if options["low_rank"] else None
    config = TranslutionConfig.model_validate({**shape, "relative": options["relative"], "rank": rank})
    return config, RopePosition() if options["rope"] else NoPosition()


def head_shape(layer: State, heads: int | None = None, head_dim: int | None = None) -> tuple[int, int]:
    """Heads and head width of a layer, as far as they are given or can be told.

    Without an output projection there is one head, as wide as the net. Otherwise the head width is that of
    a saved RoPE table; else 64, as in every public net, or 8 where 64 does not fit. Raises ValueError where
    nothing fits.
    """
    width, inner, narrow = len(need(layer, "norm.weight")), inner_width(layer), narrow_width(layer)
    projected = "to_out.0.weight" in layer
    table = next((t for key, t in layer.items() if key.endswith(".cos_cached")), None)

    def fits(width_of_head: int) -> bool:
        count = inner // width_of_head
        one_wide_head = count == 1 and width_of_head == width
        return inner == count * width_of_head and narrow % count == 0 and projected != one_wide_head

    if heads is not None and head_dim is None:
        head_dim = inner // max(heads, 1)
    elif head_dim is None:
        guesses = HEAD_DIMS if projected else (width,)
        guesses = guesses if table is None else (table.shape[-1],)
        head_dim = next((guess for guess in guesses if inner >= guess and fits(guess)), 0)
    if head_dim < 1 or not fits(head_dim) or (heads is not None and heads * head_dim != inner):
        raise ValueError(
            f"heads={heads}, head_dim={head_dim or None}: does not fit reference weights of width {width}, "
            f"inner width {inner}{f', low-rank width {narrow}' * bool(narrow)} "
            f"{'with' if projected else 'without'} output projection; name heads and head_dim"
        )
    return inner // head_dim, head_dim


def inner_width(layer: State) -> int:
    """Heads × head width."""
    if "to_qkv.weight" in layer:
        return len(layer["to_qkv.weight"]) // 3
    keys = bank_keys(layer)
    if not keys:
        raise ValueError(f"no layer of the reference code has just these keys: {', '.join(layer)}")
    return layer[keys[0]].shape[-1]


def narrow_width(layer: State) -> int:
    """Heads × rank; 0 at full rank."""
    return next((len(layer[key]) for key in layer if re.fullmatch(r"to_[qkv]1\.weight", key)), 0)


def check_grid(where: str, layer: State, shape: tuple[int, ...], causal: bool) -> None:
    """Raises ValueError when a layer's banks are not those of this grid, saying which grids they fit."""
    dims = 1 if causal else 2
    if len(shape) != dims or any(n < 1 for n in shape):
        raise ValueError(f"{where}: grid {shape}: {'(tokens,)' if causal else '(rows, columns)'} is needed")
    needed = shape[0] if causal else math.prod(2 * n - 1 for n in shape) + 3
    for key in bank_keys(layer):
        entries = len(layer[key])
        if entries != needed:
            fitting = ", ".join(map(str, grids_of(entries, causal))) or "none"
            raise ValueError(
                f"{where}: {key} has {entries} entries, grid {shape} "
                f"{'' if causal else 'with a class token '}needs {needed}; the weights fit grid {fitting}"
            )


def grids_of(entries: int, causal: bool) -> list[tuple[int, ...]]:
    """The grids whose banks have this many entries."""
    if causal:
        return [(entries,)]
    offsets = entries - 3
    odd = [n for n in range(1, offsets + 1, 2) if offsets % n == 0 and offsets // n % 2]
    return [((n + 1) // 2, (offsets // n + 1) // 2) for n in odd]


def vit_config(
    state: State,
    layers: list[State],
    heads: int | None,
    head_dim: int | None,
    grid: tuple[int, int] | None = None,
) -> ViTConfig:
    """The image net; its patches are squares, of three channels or one."""
    rows, columns = patch_grid(state, layers, grid)
    pixels = len(need(state, "to_patch_embedding.1.weight"))
    sizes = {channels: math.isqrt(pixels // channels) for channels in (3, 1)}
    channels = next((c for c, size in sizes.items() if c * size**2 == pixels), None)
    if channels is None:
        raise ValueError(f"patches of {pixels} numbers: 3 or 1 channels of a square are needed")
    patch = sizes[channels]
    learned = "pos_embedding" in state
    return ViTConfig(
        **body_config(state, "vit", layers, (rows, columns), learned, heads, head_dim),
        image_size=(rows * patch, columns * patch),
        patch_size=patch,
        channels=channels,
        classes=len(need(state, "mlp_head.weight")),
    )


def patch_grid(state: State, layers: list[State], grid: tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns) of a net's patches: `grid` if given, else the square that the weights fit."""
    banks = {len(layer[key]) for layer in layers for key in bank_keys(layer)}
    tables = {tuple(t.shape[1:3]) for layer in layers for t in layer.values() if t.dim() == 4}
    fitting: list[tuple[int, ...]] = []
    if banks:
        fitting = grids_of(max(banks), causal=False)
    elif tables:
        fitting = list(tables)
    elif "pos_embedding" in state:
        tokens = state["pos_embedding"].shape[1] - 1
        fitting = [(n, tokens // n) for n in range(1, tokens + 1) if tokens % n == 0]
    if grid is not None:
        if fitting and tuple(grid) not in fitting:
            raise ValueError(f"grid={tuple(grid)}: the reference weights fit {_listed(fitting)}")
        return grid
    side = next((rows for rows, columns in fitting if rows == columns), None)
    if side is None:
        raise ValueError(f"the reference weights fit {_listed(fitting)}: name one as grid=(rows, columns)")
    return (side, side)


def _listed(grids: list[tuple[int, ...]]) -> str:
    return "grids " + ", ".join(map(str, grids)) if grids else "any grid"


def gpt_config(state: State, layers: list[State], heads: int | None, head_dim: int | None) -> GPTConfig:
    """The language net; its context is as long as its banks, masks or position embeddings."""
    lengths = [len(layer[key]) for layer in layers for key in bank_keys(layer)]
    lengths += [t.shape[2] for layer in layers for t in layer.values() if t.dim() == 4]  # masks, RoPE tables
    lengths += [len(state["wpe.weight"])] if "wpe.weight" in state else []
    if not lengths:
        raise ValueError("the reference weights hold no bank, mask or wpe to tell the length of sequences by")
    return GPTConfig(
        **body_config(state, "gpt", layers, (lengths[0],), "wpe.weight" in state, heads, head_dim),
        vocabulary=len(need(state, "wte.weight")),
        tokens=lengths[0],
    )


def body_config(
    state: State,
    family: str,
    layers: list[State],
    shape: tuple[int, ...],
    learned: bool,
    heads: int | None,
    head_dim: int | None,
) -> dict:
    """width, depth, mlp, mixers and positions of a net."""
    found = []
    for index, layer in enumerate(layers):
        name = layer_name(family, layer)
        check_grid(f"layer {index}, {name}", layer, shape, family == "gpt")
        found.append(mixer_config(name, layer, heads, head_dim))
    runs = [(mixer, position, len(list(same))) for (mixer, position), same in itertools.groupby(found)]
    stages = [Stage(layers=count, mixer=mixer, position=position) for mixer, position, count in runs]
    position = runs[0][1]
    one_kind = len(runs) == 1 and not (learned and position.inside_mixer)
    hidden = next((len(t) for key, t in state.items() if key.endswith("layers.0.1.net.1.weight")), 0)
    return {
        "width": len(layers[0]["norm.weight"]),
        "depth": len(layers),
        "mlp": hidden,
        "mixer": runs[0][0],
        "position": LearnedPosition() if learned else position if one_kind else NoPosition(),
        "stages": None if one_kind else stages,
    }


def need(state: State, key: str) -> Tensor:
    """state[key]; raises ValueError where there is none."""
    if key not in state:
        raise ValueError(f"the reference weights have no {key}; they have {', '.join(state) or 'nothing'}")
    return state[key]
