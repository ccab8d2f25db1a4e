"""What the rest of the system asks of a token mixer; not a word about ranks.

A mixer says which dimensions of its parameters are heads or bank entries, how its parameters begin and
what it costs. parallel/ shards it by what it says, the planner counts with it, models/initial.py draws it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import nn

from models.initial import Draw
from models.mixers.cost import Cost, Load
from models.mixers.measured_cost import measured_cost
from models.ops.recipe import Combine
from models.ops.schedule import Schedule
from models.positions.interface import PositionConfig
from models.section import Section
from models.tokens import TokenGrid

Axis = Literal["head", "entry"]
Axes = dict[str, dict[int, Axis]]


class Mixer(nn.Module):
    """x[B, N, C] → [B, N, C]; the base class of every token mixer, given C and N.

    A mixer whose parameters have heads passes its input through `head_input`, a hook at which tensor
    parallelism sums gradients, and reads the number of heads that it computes from `heads`. A mixer with
    bank entries walks over `schedule`, the pairs of `schedule.grid`, with models/ops/streamed.py, and gives
    it `combine`. From outside, all four are replaced by those of a part.
    """

    heads: int = 1
    schedule: Schedule | None = None
    combine: Combine | None = None

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.dim, self.num_tokens = dim, num_tokens
        self.head_input: nn.Module = nn.Identity()

    def axes(self) -> Axes:
        """By parameter name, the dimensions that run over heads or bank entries.

        Entries are dimension 0. An nn.Linear whose inputs are heads (dimension 1) gives sums over heads;
        if its outputs are heads too (dimension 0), they are divided among the parts again. A mixer
        without heads or entries is computed whole by every rank of that axis.
        """
        return {}

    def draws(self) -> dict[str, Draw]:
        """How parameters begin that no nn.Linear, nn.LayerNorm or nn.Embedding owns."""
        return {}

    def cost(self, load: Load) -> Cost:
        """What a load takes; without formulas, by a forward and backward pass on the meta device."""
        return measured_cost(self, load)


class MixerConfig(Section):
    """The `mixer` section of a net; each mixer has a subclass, with the mixer's options as fields.

    `title` is the mixer's name in tables.
    """

    title: ClassVar[str] = ""

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

    def build(self, dim: int, tokens: TokenGrid, position: PositionConfig) -> Mixer:
        """The mixer of a layer; raises ValueError, in one line, for what it cannot do."""
        raise NotImplementedError
