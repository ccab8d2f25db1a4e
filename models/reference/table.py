"""Maps the parameters of the public code of arXiv 2510.10060 to ours, as one table of rows.

Reading, writing and converting gradients all follow it. The differences:

* its query bank is indexed by −δ, ours by δ (`query_order`);
* dense or shared projections are fused in one matrix: to_qkv, or at full rank to_qk, to_qv, to_kv;
* it has no output projection for one head as wide as the net;
* its language net ends in two LayerNorms in a row;
* masks and RoPE tables are saved with the weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from models.mixers.attention import Attention
from models.mixers.translution import Translution
from models.offsets import OffsetGrid
from models.positions.learned import LearnedPosition, NoPosition
from models.positions.rope import Rope, RopePosition
from models.reference.shapes import State
from models.transformer import GPT, ViT

BUFFERS = ("causal", "cos_cached", "sin_cached")  # the last words of keys that are no parameters


class PreNorm(nn.Sequential):
    """x[B, N, C] → mixer(norm(x)), as the public code's attention and Translution layers compute it."""

    def __init__(self, dim: int, mixer: nn.Module) -> None:
        super().__init__(OrderedDict(norm=nn.LayerNorm(dim), mixer=mixer))


@dataclass(frozen=True)
class Origin:
    """Details of the source state dict that the module does not keep."""

    prefix: str = ""
    body: str = ""  # the name of the module that holds the layers: translution or transformer
    fused: bool = True  # full-rank layers with two shared projections hold them in one matrix
    buffers: State = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One parameter of the public code: `names` of ours, stacked along their first dimension."""

    key: str
    names: tuple[str, ...]
    order: Tensor | None = None  # of the entries of a bank; its own inverse
    batched: bool = False  # ours has a first dimension of 1 that theirs has not

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        joined = ours[0] if len(ours) == 1 else torch.cat(tuple(ours))
        joined = joined if self.order is None else joined[self.order]
        return joined.squeeze(0) if self.batched else joined

    def split(self, theirs: Tensor) -> Sequence[Tensor]:
        theirs = theirs.unsqueeze(0) if self.batched else theirs
        theirs = theirs if self.order is None else theirs[self.order]
        return theirs.chunk(len(self.names))


def rows(module: nn.Module, origin: Origin) -> Iterator[Row]:
    """The table: every parameter of the public counterpart of `module`."""
    body = origin.body
    if isinstance(module, PreNorm):
        yield from _pair("norm", "norm")
        yield from _mixer_rows(module.get_submodule("mixer"), "mixer.", "", origin.fused)
        return
    assert isinstance(module, ViT | GPT)
    for index, layer in enumerate(module.layers):
        ours, theirs = f"layers.{index}.", f"{body}.layers.{index}."
        yield from _pair(theirs + "0.norm", ours + "mixer_norm")
        yield from _mixer_rows(layer.get_submodule("mixer"), ours + "mixer.", theirs + "0.", origin.fused)
        for key, name in (("0", "mlp_norm"), ("1", "mlp.up"), ("4", "mlp.down")):
            yield from _pair(f"{theirs}1.net.{key}", ours + name)
    if isinstance(module, ViT):
        for index in range(3):
            yield from _pair(f"to_patch_embedding.{index + 1}", f"patch_embedding.{index}")
        yield Row("cls_token", ("class_token",))
        if module.positions is not None:
            yield Row("pos_embedding", ("positions",))
        yield from _pair(f"{body}.norm", "norm")
        yield from _pair("mlp_head", "head")
        return
    yield Row("wte.weight", ("embedding.weight",))
    if module.positions is not None:
        yield Row("wpe.weight", ("positions",), batched=True)
    if isinstance(module.norm, nn.Sequential):
        yield from _pair(f"{body}.norm", "norm.0")
    yield from _pair("norm", "norm.1" if isinstance(module.norm, nn.Sequential) else "norm")
    yield Row("output_head.weight", ("embedding.weight" if module.config.tie_embeddings else "head.weight",))


def _pair(key: str, name: str) -> Iterator[Row]:
    for part in ("weight", "bias"):
        yield Row(f"{key}.{part}", (f"{name}.{part}",))


def _mixer_rows(mixer: nn.Module, ours: str, theirs: str, fused: bool) -> Iterator[Row]:
    assert isinstance(mixer, Attention | Translution)
    dense = [letter for letter in "qkv" if hasattr(mixer, letter)]
    low_rank = isinstance(mixer, Translution) and mixer.rank is not None
    for group in ["".join(dense)] if fused or len(dense) == 3 else dense:
        if group:
            yield Row(f"{theirs}to_{group}.weight", tuple(f"{ours}{letter}.weight" for letter in group))
    if isinstance(mixer, Translution):
        for letter in mixer.relative:
            order = query_order(mixer.grid) if letter == "q" else None
            key = f"{theirs}to_{letter}{'2' * low_rank}.unique_params"
            yield Row(key, (f"{ours}{letter}_bank",), order)
        for letter in "qkv":
            if hasattr(mixer, f"{letter}_down"):
                yield Row(f"{theirs}to_{letter}1.weight", (f"{ours}{letter}_down.weight",))
        if hasattr(mixer, "v_up"):
            yield Row(f"{theirs}to_v3.weight", (f"{ours}v_up.weight",))
    if isinstance(mixer.out, nn.Linear):
        yield from _pair(f"{theirs}to_out.0", f"{ours}out")


def query_order(grid: OffsetGrid) -> Tensor:
    """order[entry of δ] = entry of −δ, the entries of cls query→tokens and token query→cls swapped.

    The public code computes q_ij by the entry of the pair (j, i); for a causal sequence it counts
    them from the far end, which is the same reversal.
    """
    specials = 3 if grid.class_token else 0
    order = torch.arange(grid.num_entries - specials).flip(0)
    if not specials:
        return order
    cls_cls, cls_query, cls_key = grid.special_entries
    return torch.cat([order, torch.tensor([cls_cls, cls_key, cls_query])])


_ONLY_OURS = {"layer_scale", "local_patches", "feed_forward", "norm_eps", "bias", "stem", "embedding_norm"}


def check_writable(module: nn.Module) -> None:
    """Raises ValueError for a module that the public code cannot express."""
    if not isinstance(module, PreNorm | ViT | GPT):
        raise ValueError(f"{type(module).__name__}: the public code has layers (PreNorm), ViT and GPT")
    for what in _unsupported(module):
        raise ValueError(f"the public code has no counterpart of {what}")


def _unsupported(module: PreNorm | ViT | GPT) -> Iterator[str]:
    if isinstance(module, ViT) and module.config.pool != "cls":
        yield f"pool {module.config.pool} in place of a class token"
    if not isinstance(module, PreNorm):
        specs = module.config.layer_specs()
        yield from (f"reduce {spec.reduce.kind}" for spec in specs if spec.reduce)
        if module.config.class_token_joins:
            yield "a class token that joins before a later stage"
        inside = [spec.position for spec in specs] + [module.config.embedded_position()]
        known = (NoPosition(), LearnedPosition(), RopePosition())
        yield from (f"position {position}" for position in inside if position not in known)
        yield from (
            f"mixer {spec.mixer.kind}"
            for spec in specs
            if spec.mixer.kind not in ("translution", "attention")
        )
        layers = groupby(specs, key=lambda spec: spec.key)
        runs = [next(same).mixer.kind for _, same in layers]
        if len(runs) > 1 and runs != ["translution", "attention"]:
            yield "this order of layers (one mixer throughout, or one Translution, then attention)"
        for name, field in type(module.config).model_fields.items():
            value = getattr(module.config, name)
            if name in _ONLY_OURS and value != field.default:
                yield f"{name}={value}"
    for mixer in module.modules():
        if isinstance(mixer, Translution):
            grid = mixer.grid
            if grid.share != "none":
                yield f"share {grid.share}"
            if not grid.causal and (len(grid.shape) != 2 or not grid.class_token):
                yield f"{grid}"
            if mixer.rotation is not None and (mixer.rank is None or grid.causal):
                yield "rope in a Translution layer of full rank or of a causal sequence"
        if isinstance(mixer, Attention | Translution):
            out = mixer.out
            if mixer.heads == 1 and out.in_features == out.out_features:
                yield "an output projection for one head as wide as the net"
        if isinstance(mixer, Attention) and mixer.q.bias is not None:
            yield "biases of queries, keys and values"


def buffers(module: nn.Module, body: str) -> Iterator[tuple[str, Tensor]]:
    """The masks and RoPE tables that the public code saves with a net's weights."""
    for index, layer in enumerate(module.layers if isinstance(module, ViT | GPT) else ()):
        key, mixer = f"{body}.layers.{index}.0.", layer.get_submodule("mixer")
        if isinstance(module, GPT) and (isinstance(mixer, Translution) or body == "transformer"):
            N = module.config.tokens
            yield key + "causal", torch.ones(N, N).tril()[None, None]
        assert isinstance(mixer, Attention | Translution)
        if rope := next((part for part in mixer.modules() if isinstance(part, Rope)), None):
            angle = rope.angle(torch.device("cpu"))
            image = isinstance(module, ViT)
            angle = angle[1:].unflatten(0, module.config.grid) if image else angle[None]
            name = "rope" if image else "rotary_emb"
            yield f"{key}{name}.cos_cached", angle.cos().float()[None]
            yield f"{key}{name}.sin_cached", angle.sin().float()[None]
    if isinstance(module, GPT):  # the first of two final norms; ours is the second
        yield f"{body}.norm.weight", torch.ones_like(module.norm.weight.detach())
        yield f"{body}.norm.bias", torch.zeros_like(module.norm.bias.detach())
