"""Which mixer, position and tokens each layer of a net has, as its config says."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from models.mixers.attention import AttentionConfig
from models.mixers.interface import MixerConfig
from models.mixers.translution import TranslutionConfig
from models.positions.interface import PositionConfig, from_name
from models.positions.learned import LearnedPosition, NoPosition
from models.positions.rope import RopePosition
from models.reducers.interface import ReducerConfig
from models.section import by_import_path
from models.tokens import TokenGrid

AnyMixer = Annotated[
    SerializeAsAny[Annotated[TranslutionConfig | AttentionConfig, Field(discriminator="kind")]],
    by_import_path(MixerConfig),
]
AnyPosition = Annotated[
    SerializeAsAny[Annotated[NoPosition | LearnedPosition | RopePosition, Field(discriminator="kind")]],
    by_import_path(PositionConfig),
    BeforeValidator(from_name),
]
AnyReducer = Annotated[SerializeAsAny[ReducerConfig], by_import_path(ReducerConfig)]


class Stage(BaseModel):
    """A run of equal layers.

    mixer     null: the net's
    position  null: the net's; a learned one cannot begin inside a net
    reduce    what then lowers the number of tokens; null: nothing
    """

    model_config = ConfigDict(extra="forbid")

    layers: int = Field(ge=1)
    mixer: AnyMixer | None = None
    position: AnyPosition | None = None
    reduce: AnyReducer | None = None


class LayerSpec(NamedTuple):
    """What makes one layer differ from another."""

    mixer: MixerConfig
    position: PositionConfig
    tokens: TokenGrid
    reduce: ReducerConfig | None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for layers that are built alike."""
        sections = (self.mixer, self.position, self.reduce)
        return (self.tokens, *(each and each.model_dump_json() for each in sections))

    @property
    def tokens_after(self) -> TokenGrid:
        return self.reduce.after(self.tokens) if self.reduce else self.tokens


class TransformerConfig(BaseModel):
    """What every net's `model` section has.

    width, depth, mlp   C, the number of layers, the hidden width of the feed-forward
    mixer               of all layers, or of the stages that name none
    stages              runs of layers {layers, mixer, position, reduce} that add up to depth
    position            null: learned, unless a mixer tells positions apart by itself
    dropout             on the outputs of mixer and feed-forward
    """

    model_config = ConfigDict(extra="forbid")

    width: int = Field(default=192, ge=1)
    depth: int = Field(default=6, ge=1)
    mlp: int = Field(default=768, ge=1)
    mixer: AnyMixer = TranslutionConfig()
    stages: list[Stage] | None = Field(default=None, min_length=1)
    position: AnyPosition | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, values: Any) -> Any:
        now = {"mixers": "stages: [{layers, mixer}, …]", "positions": "position: learned, none or rope"}
        for key, instead in now.items():
            if isinstance(values, dict) and key in values:
                raise ValueError(f"{key} is no longer a key: write {instead}")
        return values

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        layers = [stage.layers for stage in self.stages or ()]
        if layers and "depth" not in self.model_fields_set:
            self.depth = sum(layers)
        if layers and sum(layers) != self.depth:
            raise ValueError(f"stages: layers {layers} add up to {sum(layers)}, depth is {self.depth}")
        self.layer_specs()
        return self

    @property
    def token_grid(self) -> TokenGrid:
        """The tokens that the first layer is given."""
        raise NotImplementedError

    def layer_specs(self) -> list[LayerSpec]:
        """Every layer; raises ValueError for a mixer, position or reduction that does not fit its tokens."""
        tokens, specs = self.token_grid, list[LayerSpec]()
        for number, stage in enumerate(self.stages or [Stage(layers=self.depth)]):
            mixer, position = stage.mixer or self.mixer, stage.position or self.position or NoPosition()
            if position.inside_mixer and (reason := mixer.refuses(position)):
                raise ValueError(f"position {position.kind}: {reason}")
            if isinstance(stage.position, LearnedPosition):
                raise ValueError(
                    f"stages[{number}].position=learned: positions are learned by the net, not a stage"
                )
            last = LayerSpec(mixer, position, tokens, stage.reduce)
            specs += [last._replace(reduce=None)] * (stage.layers - 1) + [last]
            tokens = last.tokens_after
        return specs

    def embedded_position(self) -> PositionConfig:
        """The position encoding whose embedding is added to the tokens."""
        if self.position is not None:
            return self.position
        specs = self.layer_specs()
        known = any(spec.mixer.knows_positions() or spec.position.inside_mixer for spec in specs)
        return NoPosition() if known else LearnedPosition()
