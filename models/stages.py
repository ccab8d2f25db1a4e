"""Which mixer, position and tokens each layer of a net has, as its config says."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from models.mixers.attention import AttentionConfig
from models.mixers.bixt.cross import LatentCrossConfig
from models.mixers.combiner.combiner import CombinerConfig
from models.mixers.interface import Mixer, MixerConfig
from models.mixers.rwkv.mixing import ChannelMixConfig, TimeMixConfig
from models.mixers.structure.layer import StructureConfig
from models.mixers.tost.tssa import TokenStatisticsConfig
from models.mixers.translution import TranslutionConfig
from models.mixers.xcit.xca import CrossCovarianceConfig
from models.parts.net import Scheme
from models.positions.fourier import FourierPosition
from models.positions.interface import PositionConfig, from_name
from models.positions.learned import LearnedPosition, NoPosition
from models.positions.relative.botnet import BotnetPosition
from models.positions.relative.gpsa import GatedPosition
from models.positions.relative.shaw import ShawPosition
from models.positions.relative.swin import SwinPosition
from models.positions.rope import RopePosition
from models.positions.sinusoidal import SinusoidalPosition
from models.reducers.clusters import DensityPeaksConfig
from models.reducers.decouple import DecoupleConfig
from models.reducers.dynamic import DynamicConfig
from models.reducers.interface import Reducer, ReducerConfig, patches_of
from models.reducers.selection import EvitConfig, RandomConfig, UniformConfig
from models.section import by_import_path
from models.tokens import TokenGrid

AnyMixer = Annotated[
    SerializeAsAny[
        Annotated[
            TranslutionConfig
            | AttentionConfig
            | TokenStatisticsConfig
            | CrossCovarianceConfig
            | LatentCrossConfig
            | CombinerConfig
            | TimeMixConfig
            | ChannelMixConfig
            | StructureConfig,
            Field(discriminator="kind"),
        ]
    ],
    by_import_path(MixerConfig),
]
AnyPosition = Annotated[
    SerializeAsAny[
        Annotated[
            NoPosition
            | LearnedPosition
            | SinusoidalPosition
            | RopePosition
            | ShawPosition
            | BotnetPosition
            | SwinPosition
            | GatedPosition
            | FourierPosition,
            Field(discriminator="kind"),
        ]
    ],
    by_import_path(PositionConfig),
    BeforeValidator(from_name),
]
AnyReducer = Annotated[
    SerializeAsAny[
        Annotated[
            EvitConfig | DecoupleConfig | DynamicConfig | DensityPeaksConfig | RandomConfig | UniformConfig,
            Field(discriminator="kind"),
        ]
    ],
    by_import_path(ReducerConfig),
]


class Stage(BaseModel):
    """A run of equal layers.

    mixer     null: the net's
    position  null: the net's; learned positions belong to the net, not to a stage
    reduce    reducer in the last layer, for those after it; null: none
    class_token   of a net with pool: cls: its token joins before this stage, not before the first layer
    layers  how many
    """

    model_config = ConfigDict(extra="forbid")

    layers: int = Field(ge=1)
    mixer: AnyMixer | None = None
    position: AnyPosition | None = None
    reduce: AnyReducer | None = None
    class_token: bool = False


class LayerSpec(NamedTuple):
    """What makes one layer differ from another.

    form    residual: of all tokens; latents: of the latents alone; class: of the class token alone
    place   the layer's index and the number of layers
    """

    mixer: MixerConfig
    position: PositionConfig
    tokens: TokenGrid
    reduce: ReducerConfig | None
    form: Literal["residual", "latents", "class"] = "residual"
    place: tuple[int, int] = (0, 1)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for layers that are built alike."""
        sections = (self.mixer, self.position, self.reduce)
        return (self.tokens, self.form, *(each and each.model_dump_json() for each in sections))

    @property
    def tokens_after(self) -> TokenGrid:
        return self.reduce.after(self.tokens) if self.reduce else self.tokens

    @property
    def reduces(self) -> bool:
        """False also of a reducer that keeps all tokens as they are."""
        return self.reduce is not None and not self.reduce.keeps_all(self.tokens)

    @property
    def reduces_inside(self) -> bool:
        """Whether the tokens get fewer between mixer and feed-forward."""
        return self.reduce is not None and self.reduces and self.reduce.place == "inside"

    def build_mixer(self, dim: int) -> Mixer:
        """Raises ValueError, in one line, for a mixer that cannot be built or declares what cannot be."""
        mixer = self.mixer.build(dim, self.tokens, self.position)
        if not isinstance(mixer, Mixer):
            raise ValueError(f"mixer {self.mixer.kind}: build() gives {type(mixer).__name__}, no Mixer")
        mixer.place = self.place
        if self.reduce is not None and self.reduces and self.reduce.ranks:
            mixer.importance = "class" if self.tokens.class_token else "received"
        mixer.check()
        return mixer

    def build_reducer(self, dim: int) -> Reducer | None:
        if self.reduce is None or not self.reduces:
            return None
        reducer = self.reduce.build(dim, self.tokens)
        if not isinstance(reducer, Reducer):
            raise ValueError(f"reduce {self.reduce.kind}: build() gives {type(reducer).__name__}, no Reducer")
        return reducer


class TransformerConfig(BaseModel):
    """What every net's `model` section has.

    width               C, the channels of a token
    depth               the number of layers
    mlp                 the hidden width of the feed-forward
    mixer               of all layers, or of the stages that name none
    stages              runs of layers {layers, mixer, position, reduce} that add up to depth
    position            null: learned, unless a mixer tells positions apart by itself
    dropout             on the outputs of mixer and feed-forward
    layer_scale         initial value of a learned scale of every residual branch; null: none
    local_patches       XCiT's local patch interaction between mixer and feed-forward
    feed_forward        gelu, relu, or RWKV-4's channel mixing
    norm_eps            added to the variance in all norms
    bias                whether norms and feed-forward have biases
    initial             how linear layers begin: see models/parts/net.py
    """

    model_config = ConfigDict(extra="forbid")

    width: int = Field(default=192, ge=1)
    depth: int = Field(default=6, ge=1)
    mlp: int = Field(default=768, ge=1)
    mixer: AnyMixer = TranslutionConfig()
    stages: list[Stage] | None = Field(default=None, min_length=1)
    position: AnyPosition | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layer_scale: float | None = Field(default=None, gt=0)
    local_patches: bool = False
    feed_forward: Literal["gelu", "relu", "rwkv"] = "gelu"
    norm_eps: float = Field(default=1e-5, gt=0)
    bias: bool = True
    initial: Scheme = "torch"

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
            self.model_fields_set.discard("depth")
        if layers and sum(layers) != self.depth:
            raise ValueError(f"stages: layers {layers} add up to {sum(layers)}, depth is {self.depth}")
        self.layer_specs()
        return self

    @property
    def token_grid(self) -> TokenGrid:
        """The tokens that the first layer is given."""
        raise NotImplementedError

    @property
    def class_token_joins(self) -> bool:
        """Whether a class token joins before a later stage."""
        return False

    @property
    def dynamic_stages(self) -> int:
        """How many stages drop tokens by masks in training."""
        return sum(stage.reduce is not None and stage.reduce.masks for stage in self.stages or ())

    def layer_specs(self) -> list[LayerSpec]:
        """Every layer; raises ValueError for a position that a mixer does not apply, a mixer without a causal
        form, and a reducer that does not fit its tokens."""
        tokens, specs = self.token_grid, list[LayerSpec]()
        for number, stage in enumerate(self.stages or [Stage(layers=self.depth)]):
            mixer, position = stage.mixer or self.mixer, stage.position or self.position or NoPosition()
            if stage.class_token:
                if tokens.class_token or not self.class_token_joins:
                    raise ValueError(f"stages[{number}].class_token: joins once, and only with pool: cls")
                if tokens.masked:
                    raise ValueError(f"stages[{number}].class_token: must join before reduce=dynamicvit")
                tokens = replace(tokens, class_token=True)
            if position.inside_mixer and (reason := mixer.refuses(position)):
                raise ValueError(f"position {position.kind}: {reason}")
            if not (position.inside_mixer or isinstance(stage.position, NoPosition | None)):
                raise ValueError(f"stages[{number}].position={position.kind}: the net adds it, not a stage")
            first_or_inside = number == 0 or position.inside_mixer
            if first_or_inside and (reason := position.refuses(tokens, self.width)):
                raise ValueError(f"position {position.kind}: {reason}")
            if reason := mixer.refuses_tokens(tokens):
                raise ValueError(f"mixer {mixer.kind} {reason}")
            if tokens.masked and not mixer.masks:
                raise ValueError(f"mixer {mixer.kind} cannot mask the tokens that an earlier stage drops")
            if tokens.latents and not mixer.latents:
                raise ValueError(f"mixer {mixer.kind} mixes no latents with tokens; latents needs mixer bixt")
            if stage.reduce and (reason := _refuses_reducer(stage.reduce, mixer, tokens)):
                raise ValueError(f"stages[{number}].reduce={stage.reduce.kind}: {reason}")
            last = LayerSpec(mixer, position, tokens, stage.reduce)
            specs += [last._replace(reduce=None)] * (stage.layers - 1) + [last]
            tokens = last.tokens_after
            left, patches = patches_of(tokens), patches_of(last.tokens)
            if stage.reduce and not 0 < left <= patches:
                raise ValueError(f"stages[{number}].reduce: leaves {left} of {patches} tokens")
            if tokens.class_token != last.tokens.class_token:
                raise ValueError(f"stages[{number}].reduce: loses the class token, which the net reads")
        return self.around(specs)

    def around(self, body: list[LayerSpec]) -> list[LayerSpec]:
        """All layers of the net, given those of its stages; raises ValueError like `layer_specs`."""
        for tokens in (spec.tokens for spec in body) if self.local_patches else ():
            if tokens.shape is None or len(tokens.shape) != 2 or tokens.class_token or tokens.latents:
                raise ValueError("local_patches: needs a grid of rows and columns, no class token or latents")
        if self.feed_forward == "rwkv" and not body[0].tokens.causal:
            raise ValueError(
                "feed_forward=rwkv reads a sequence from its first token: for language nets only"
            )
        if self.initial == "rwkv" and not body[0].tokens.causal:
            raise ValueError("initial=rwkv begins an embedding of words: it is for language nets only")
        return [spec._replace(place=(index, len(body))) for index, spec in enumerate(body)]

    def embedded_position(self) -> PositionConfig:
        """The position encoding whose embedding is added to the tokens."""
        if self.position is not None:
            return self.position
        specs = self.layer_specs()
        known = any(spec.mixer.knows_positions() or spec.position.inside_mixer for spec in specs)
        return NoPosition() if known else LearnedPosition()


def _refuses_reducer(reduce: ReducerConfig, mixer: MixerConfig, tokens: TokenGrid) -> str | None:
    if reduce.ranks and not mixer.ranks:
        return f"mixer {mixer.kind} has no attention weights to rank tokens by; density_peaks needs none"
    if tokens.masked and not reduce.masks:
        return "an earlier stage only masks tokens in training: reduce by dynamicvit here too"
    return reduce.refuses(tokens)
