"""The interface of a token mixer; it knows nothing of ranks.

A mixer declares which dimensions of its parameters are heads or bank entries, how its parameters are
initialised and what it costs. parallel/ shards it, the planner counts and models/initial.py draws by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from models.decoding.cache import Cache, Recomputed
from models.initial import Draw
from models.mixers.cost import Cost, Load
from models.mixers.measured_cost import measured_cost
from models.ops.recipe import Combine, Importance
from models.ops.walk.schedule import Schedule
from models.positions.interface import PositionConfig
from models.section import Section
from models.tokens import TokenGrid

Axis = Literal["head", "entry"]
Axes = dict[str, dict[int, Axis]]


class Mixer(nn.Module):
    """x[B, N, C] → [B, N, C]; the base class of every token mixer, given C and N.

    A mixer with heads passes its input through `head_input`, the hook where tensor parallelism sums
    gradients, and computes `heads` heads. A mixer with bank entries calls models/ops/streamed.py with
    `schedule` and `combine`. One whose heads share a softmax takes it by `head_softmax(logits, dim)`, `dim`
    being that of the heads, and a mean of all heads by `head_mean(numbers, dim)`. parallel/ replaces these
    six attributes when it shards the mixer. Constants are computed in forward; statistics that training
    follows are buffers, which `draws` begins like parameters.

    softmax_tokens   how many tokens' logits pass `head_softmax`
    importance       where a reducer ranks the tokens: which importance[B, N] `forward` returns beside y, the
                     mean of all heads, in float32 or more; a class token's own is not in it
    place            the layer's index and the number of layers, where initial values depend on it
    """

    heads: int = 1
    schedule: Schedule | None = None
    combine: Combine | None = None
    softmax_tokens: int = 0
    importance: Importance | None = None
    place: tuple[int, int] = (0, 1)

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.dim, self.num_tokens = dim, num_tokens
        self.head_input: nn.Module = nn.Identity()
        self.head_softmax: Callable[[Tensor, int], Tensor] = softmax_over_heads
        self.head_mean: Callable[[Tensor, int], Tensor] = mean_of_heads

    def axes(self) -> Axes:
        """By parameter name, the dimensions that run over heads or bank entries.

        Entries are dimension 0. An nn.Linear whose inputs are heads (dimension 1) sums over heads; if its
        outputs are heads too (dimension 0), each rank keeps its own. Every parameter used between
        `head_input` and that sum must be declared, or its gradient covers only a rank's heads. Without
        heads or entries, every rank of that axis computes the whole mixer.
        """
        return {}

    def divided_axes(self) -> set[str]:
        """Which of "head" and "entry" the parameters run over."""
        return {axis for dims in self.axes().values() for axis in dims.values()}

    def draws(self) -> dict[str, Draw]:
        """Initial distributions of parameters that belong to no nn.Linear, nn.LayerNorm or nn.Embedding."""
        return {}

    def tokens_out(self, linear: str) -> int:
        """How many of the N tokens pass a linear layer whose inputs are heads."""
        return self.num_tokens

    def weights(self, x_BNC: Tensor) -> Tensor | None:
        """The weights [B, H, N, N] with which each query sums the keys' values, by head; None for a mixer
        that has none. On a mesh those of this rank's heads; all ranks call it."""
        return None

    def shifts(self) -> Tensor | None:
        """Learned weights [heads, …] of the offsets of a window, least offset first; None for most mixers."""
        return None

    def no_decay(self) -> set[str]:
        """Parameters of several dimensions that weight decay leaves alone."""
        return set()

    def cost(self, load: Load) -> Cost:
        """Cost of a load; without formulas, measured by a forward and backward pass on the meta device."""
        return measured_cost(self, load)

    def cache(self) -> Cache:
        """An empty cache, to generate a causal sequence; by default, one that mixes all tokens again."""
        return Recomputed(self, self.num_tokens)

    def check(self) -> None:
        """Raises ValueError, in one line, where `axes` declares what cannot be."""
        own, mixer = dict(self.named_parameters()), type(self).__name__
        for name, dims in self.axes().items():
            if name not in own:
                raise ValueError(f"{mixer}.axes: {name} is no parameter; it has {', '.join(own) or 'none'}")
            for dim, axis in dims.items():
                where = f"{mixer}.axes: dimension {dim} of {name}"
                if axis not in ("head", "entry") or not 0 <= dim < own[name].dim():
                    raise ValueError(f"{where} is {axis!r}: 'head' or 'entry' of an existing one is needed")
                if axis == "entry" and (dim or self.schedule is None):
                    raise ValueError(f"{where}: entries are dimension 0, of a mixer with a schedule")
                if axis == "head" and own[name].shape[dim] % self.heads:
                    raise ValueError(
                        f"{where} is {own[name].shape[dim]} long, no multiple of {self.heads} heads"
                    )
            path, _, leaf = name.rpartition(".")
            linear = isinstance(self.get_submodule(path), nn.Linear) and leaf == "weight"
            if dims.get(1) == "head" and not linear:
                raise ValueError(f"{mixer}.axes: {name} sums over heads; only the weight of an nn.Linear may")


class MixerConfig(Section):
    """The `mixer` section of a net; each mixer has a subclass, with the mixer's options as fields.

    title    the mixer's name in tables
    causal   whether it has a causal form, in which no token sees a later one; language nets need it
    latents  whether it mixes latents with tokens
    ranks    whether it can say how important each token is to the others (`Mixer.importance`)
    masks    whether its mixer takes kept[B, N] after x, 0 for a token that the others are not to see
    """

    title: ClassVar[str] = ""
    causal: ClassVar[bool] = False
    latents: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    masks: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, values: Any) -> Any:
        if isinstance(values, dict) and "rope" in values and "rope" not in cls.model_fields:
            raise ValueError(
                "rope is no longer a key of mixers: write position: rope in the model or a stage"
            )
        return values

    def knows_positions(self) -> bool:
        """Whether the mixer tells positions apart by itself, so that none are learned unless asked for."""
        return False

    def refuses(self, position: PositionConfig) -> str | None:
        """Why the mixer cannot apply this position encoding inside itself; None where it can."""
        return f"mixer {self.kind} applies no positions"

    def refuses_tokens(self, tokens: TokenGrid) -> str | None:
        """Why the mixer cannot mix these tokens; None where it can."""
        if tokens.causal and not self.causal:
            return "has no causal form, which a language net needs"
        return None

    def of_head_width(self, factor: float, step: int = 1) -> MixerConfig:
        """The section with heads so many times as wide, rounded to a multiple of `step`; itself where heads
        have no width of their own."""
        if "head_dim" not in type(self).model_fields:
            return self
        head_dim: int = getattr(self, "head_dim")  # noqa: B009 (a field of some subclasses)
        return self.model_copy(update={"head_dim": max(step, round(head_dim * factor / step) * step)})

    def for_last_layer(self) -> MixerConfig:
        """The section of a net's last layer, after which nothing reads the tokens but the latents."""
        return self

    def of_latents(self, dim: int) -> MixerConfig:
        """The mixer of the latents among themselves, of a mixer with `latents`."""
        raise NotImplementedError

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Mixer:
        """The mixer of a layer; raises ValueError, in one line, for what it cannot do. Where `tokens.causal`,
        no token may see a later one."""
        raise NotImplementedError


def softmax_over_heads(logits: Tensor, dim: int) -> Tensor:
    """Softmax over all heads, which lie along `dim`."""
    return logits.softmax(dim)


def mean_of_heads(numbers: Tensor, dim: int) -> Tensor:
    """The mean of all heads, which lie along `dim`."""
    return numbers.mean(dim)


def head_width(dim: int, heads: int) -> int:
    """E of heads that share the net's width; raises ValueError where it does not divide."""
    if dim % heads:
        raise ValueError(f"width {dim} is not divisible by {heads} heads")
    return dim // heads


def head_axes(mixer: nn.Module, into: tuple[str, ...], out: tuple[str, ...]) -> Axes:
    """`Mixer.axes` of linear layers into heads and out of them."""
    axes: Axes = {f"{name}.weight": {1: "head"} for name in out}
    for name in into:
        axes[f"{name}.weight"] = {0: "head"}
        if mixer.get_submodule(name).bias is not None:
            axes[f"{name}.bias"] = {0: "head"}
    return axes
