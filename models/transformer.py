"""The nets: a pre-norm transformer over any token mixer, for images (ViT) and for text (GPT)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.initial import Draw
from models.mixers.rwkv.logit_pull import pulled
from models.mixers.xcit.class_attention import ClassAttentionConfig
from models.parts.block import Block
from models.parts.class_layer import ClassLayer
from models.parts.net import STD, Net, VocabularyHead, linear_draws
from models.parts.sides import Sides
from models.parts.stems import AnyStem, Stem
from models.positions.interface import add_positions
from models.positions.learned import NoPosition
from models.reducers.dynamic import in_parts, mean_of_kept
from models.reducers.layer import MaskedLayer, ReducingLayer
from models.stages import LayerSpec, TransformerConfig
from models.tokens import TokenGrid

EMBEDDING_STD = 0.02  # GPT-2's; with more, tied logits begin at √C and learning is slow
Side = Annotated[int, Field(ge=1)]


class Layer(Block):
    """x ← x + mixer(norm(x)), then x ← x + mlp(norm(x))."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.dropout(self.mixer_scale(self.mixer(self.mixer_norm(x_BNC))))
        if self.local is not None:
            x_BNC = x_BNC + self.dropout(self.local_scale(self.local(self.local_norm(x_BNC))))
        return x_BNC + self.dropout(self.mlp_scale(self.mlp(self.mlp_norm(x_BNC))))


def build_layers(config: TransformerConfig, specs: list[LayerSpec] | None) -> nn.Sequential:
    """The layers of a net: of `specs`, or of its config."""
    return nn.Sequential(*(_build_layer(config, spec) for spec in specs or config.layer_specs()))


def _build_layer(config: TransformerConfig, spec: LayerSpec) -> nn.Module:
    if isinstance(spec.mixer, ClassAttentionConfig):
        return ClassLayer(config, spec, spec.mixer.norm_tokens)
    if spec.form == "latents":
        return Sides(spec.tokens.latents, Layer(config, spec), nn.Identity())
    if spec.tokens_after.masked:
        return MaskedLayer(config, spec)
    return (ReducingLayer if spec.reduces else Layer)(config, spec)


class ViTConfig(TransformerConfig):
    """The `model` section of an image net.

    image_size, patch_size   pixels: one number for a square, [height, width] for a rectangle
    stem                     how images become tokens: patches, projection, convolutions (see `Stem`)
    channels                 of an image: 3, or 1 for grey
    classes                  how many the head tells apart
    pool                     what the head reads: "cls" a class token, "mean" the mean of all tokens,
                             "class_attention" a class token that joins after the body, "latents" their mean
    class_attention          the layers of pool: class_attention
    latents                  learned tokens that mixer bixt updates, for pool: latents
    """

    kind: Literal["vit"] = "vit"
    image_size: Side | tuple[Side, Side] = 224
    patch_size: Side | tuple[Side, Side] = 16
    channels: int = Field(default=3, ge=1)
    classes: int = Field(default=1000, ge=1)
    stem: AnyStem = Stem()
    pool: Literal["cls", "mean", "class_attention", "latents"] = "cls"
    class_attention: ClassAttentionConfig | None = None
    latents: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        if (self.pool == "latents") != bool(self.latents):
            raise ValueError(f"pool={self.pool} and latents={self.latents}: either asks for the other")
        if self.class_attention is not None and self.pool != "class_attention":
            raise ValueError(f"class_attention is of pool: class_attention, pool is {self.pool}")
        return self

    @property
    def image_shape(self) -> tuple[int, int]:  # pixels
        return _pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:  # pixels
        return _pair(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:  # rows and columns of patches
        return self.stem.grid(self.image_shape, self.patch_shape)

    @property
    def token_grid(self) -> TokenGrid:
        first = self.pool == "cls" and not self.class_token_joins
        return TokenGrid(self.grid, class_token=first, latents=self.latents)

    @property
    def class_token_joins(self) -> bool:
        return self.pool == "cls" and any(stage.class_token for stage in self.stages or ())

    def around(self, body: list[LayerSpec]) -> list[LayerSpec]:
        """With attention among the latents after each layer, or class attention after all of them."""
        body, after = super().around(body), list[LayerSpec]()
        if self.latents:
            body[-1] = body[-1]._replace(mixer=body[-1].mixer.for_last_layer())
            alone = TokenGrid(None, latents=self.latents)
            inner = (spec.mixer.of_latents(self.width) for spec in body)
            between = (LayerSpec(mixer, NoPosition(), alone, None, "latents") for mixer in inner)
            body = [each for pair in zip(body, between, strict=True) for each in pair]
        if self.pool == "class_attention":
            reading = self.class_attention or ClassAttentionConfig()
            tokens = replace(body[-1].tokens_after, class_token=True)
            if tokens.masked:
                raise ValueError("pool=class_attention reads dropped tokens: reduce=dynamicvit needs cls")
            after = [LayerSpec(reading, NoPosition(), tokens, None, "class")] * reading.layers
        return body + after


class ViT(Net):
    """images[B, channels, height, width] → logits[B, classes] (arXiv 2010.11929)."""

    def __init__(self, config: ViTConfig, specs: list[LayerSpec] | None = None) -> None:
        super().__init__()
        self.config = config
        C = config.width
        self.patch_embedding = config.stem.build(config.image_shape, config.patch_shape, config.channels, C)
        joins = config.pool in ("cls", "class_attention")
        self.class_token = nn.Parameter(torch.randn(1, 1, C)) if joins else None
        self.latents = nn.Parameter(torch.randn(1, config.latents, C)) if config.latents else None
        on_grid = replace(config.token_grid, latents=0)
        self.positions = config.embedded_position().embedding(on_grid, C)
        self.dropout = nn.Dropout(config.dropout)
        specs = specs or config.layer_specs()
        self.class_token_at = next((i for i, spec in enumerate(specs) if spec.tokens.class_token), None)
        self.layers = build_layers(config, specs)
        self.norm = _norm(config)
        self.head = nn.Linear(C, config.classes)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, a float32 scalar; targets are labels[B] or class shares[B, classes]."""
        pooled_BC, penalty = self.features(images)
        loss = F.cross_entropy(_wide(self.head(pooled_BC)), targets)
        return loss if penalty is None else loss + penalty.to(loss.dtype) / self.config.dynamic_stages

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)[0])

    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the head reads, [B, C], and in training the penalty of stages that drop tokens dynamically."""
        wanted = (self.config.channels, *self.config.image_shape)
        if images.shape[1:] != wanted:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: [batch, {', '.join(map(str, wanted))}] is needed"
            )
        pool, x_BNC = self.config.pool, self.patch_embedding(images)
        if on_all := self.config.token_grid.class_token:
            x_BNC = _before(self.class_token, x_BNC)
        x_BNC = self.dropout(add_positions(x_BNC, self.positions))
        if pool == "latents":
            x_BNC = _before(self.latents, x_BNC)
        masks: list[Tensor] = []  # from the first dynamic reduction on, in training
        for index, layer in enumerate(self.layers):
            if index == self.class_token_at and not on_all:
                x_BNC = _before(self.class_token, x_BNC)
            x_BNC, *masks = in_parts(layer(x_BNC, *masks))
        if pool == "latents":
            x_BNC = x_BNC[:, : self.config.latents].mean(1, keepdim=True)
        x_BNC = self.norm(x_BNC)
        pooled_BC = mean_of_kept(x_BNC, *masks[:1]) if pool == "mean" else x_BNC[:, 0]
        return pooled_BC, masks[1] if masks else None

    def draws(self) -> dict[str, Draw]:
        """See models/initial.py."""
        own = Draw(std=1.0 if self.config.initial == "torch" else STD)
        linear = linear_draws(self, self.config.initial, self.config.depth)
        return {"class_token": own, "positions": own, "latents": Draw(std=STD)} | linear


def _before(token: Tensor | None, x_BNC: Tensor) -> Tensor:
    """x with one or several tokens [1, n, C] in front."""
    assert token is not None
    return torch.cat((token.expand(len(x_BNC), -1, -1).to(x_BNC.dtype), x_BNC), 1)


class GPTConfig(TransformerConfig):
    """The `model` section of a language net.

    vocabulary           V
    tokens               N, the length of every sequence
    tie_embeddings       the head's matrix is the token embedding's (the public code's are two matrices)
    embedding_norm       a norm before the first layer, as RWKV-4 has it
    logit_pull           weight of its pull on the largest logits (1e-4 in its code); 0: none
    """

    kind: Literal["gpt"] = "gpt"
    vocabulary: int = Field(default=50_257, ge=2)
    tokens: int = Field(default=160, ge=1)
    tie_embeddings: bool = False
    embedding_norm: bool = False
    logit_pull: float = Field(default=0.0, ge=0)

    @property
    def token_grid(self) -> TokenGrid:
        return TokenGrid((self.tokens,), causal=True)

    @model_validator(mode="after")
    def _check_reductions(self) -> Self:
        if any(stage.reduce for stage in self.stages or ()):
            raise ValueError("stages: a language net predicts every token, so no stage can `reduce` them")
        return self


class GPT(Net):
    """ids[B, N] int64 → logits[B, N, V]; the logits at n are for token n + 1 and see tokens 0 … n.

    Raises ValueError for ids of another length than `tokens`. Source: arXiv 2510.10060, section 4.3.
    """

    def __init__(self, config: GPTConfig, specs: list[LayerSpec] | None = None) -> None:
        super().__init__()
        self.config = config
        C, V = config.width, config.vocabulary
        self.embedding = nn.Embedding(V, C)
        self.positions = config.embedded_position().embedding(config.token_grid, C)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.layers = build_layers(config, specs)
        self.norm = _norm(config)
        self.head = VocabularyHead(C, V)
        self.reset_embeddings()
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    @torch.no_grad()
    def reset_embeddings(self) -> None:
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        if isinstance(self.positions, nn.Parameter):
            nn.init.normal_(self.positions, std=EMBEDDING_STD)

    def loss(self, ids_BN: Tensor, targets_BN: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens whose target is not negative, a float32 scalar."""
        x_BNC = self.features(ids_BN)
        if self.config.logit_pull and self.training:
            return self.loss_of(self.head(x_BNC), targets_BN)
        return self.head(x_BNC, targets_BN) / (targets_BN >= 0).sum()

    def loss_of(self, logits_BNV: Tensor, targets_BN: Tensor) -> Tensor:
        """The same, of whole logits, on the largest of which `logit_pull` acts."""
        logits, targets = _wide(logits_BNV.flatten(0, 1)), targets_BN.flatten()
        losses = F.cross_entropy(logits, targets.clamp_min(0), reduction="none")
        loss = losses.masked_fill(targets < 0, 0.0).sum() / (targets >= 0).sum()
        weight = self.config.logit_pull
        return pulled(loss, logits_BNV, weight) if weight and self.training else loss

    def logits(self, ids_BN: Tensor) -> Tensor:
        return self.head(self.features(ids_BN))

    def features(self, ids_BN: Tensor) -> Tensor:
        """What the head reads, [B, N, C]."""
        if ids_BN.dim() != 2 or ids_BN.shape[1] != self.config.tokens:
            raise ValueError(f"ids of shape {tuple(ids_BN.shape)}: [batch, {self.config.tokens}] is needed")
        x_BNC = add_positions(self.embedding(ids_BN), self.positions)
        return self.norm(self.layers(self.dropout(self.embedding_norm(x_BNC))))

    def draws(self) -> dict[str, Draw]:
        """See models/initial.py."""
        own = {"embedding.weight": Draw(std=EMBEDDING_STD), "positions": Draw(std=EMBEDDING_STD)}
        return own | linear_draws(self, self.config.initial, self.config.depth)


ModelConfig = Annotated[ViTConfig | GPTConfig, Field(discriminator="kind")]


def build_model(config: ModelConfig, specs: list[LayerSpec] | None = None) -> ViT | GPT:
    """The net of a run's `model` section; under torch.device("meta") it takes no memory.

    With `specs`, it has these layers in place of the config's.
    """
    return ViT(config, specs) if isinstance(config, ViTConfig) else GPT(config, specs)


def _wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _norm(config: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, config.norm_eps, bias=config.bias)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
