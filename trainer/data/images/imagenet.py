"""ImageNet, or any other images in class folders, from the shards of `translution prepare imagenet`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models import ModelConfig
from parallel.errors import UserError
from trainer.data.images.augment import Mix, normalise, soft_targets, to_float
from trainer.data.images.loader import Loader
from trainer.data.images.manifest import check_shards, read_manifest
from trainer.data.images.order import Order, default_lanes
from trainer.data.images.parts import Cropping, ImageSet
from trainer.data.images.rand_augment import RandAugment
from trainer.data.source import Batch
from trainer.metrics import Classification


class RandAugmentConfig(BaseModel):
    """Number of operations per image, and their strength (of 30).

    operations  per image
    magnitude   strength of an operation, of 30
    """

    model_config = ConfigDict(extra="forbid")

    operations: int = Field(2, ge=1, le=15)
    magnitude: int = Field(9, ge=1, le=29)


class ImagenetConfig(BaseModel):
    """Folders of prepared shards, how to read them, and how to augment training images.

    crop_scale    least and greatest share of an image's area in a random crop
    flip          mirror half of the training images
    rand_augment  {operations, magnitude}; null: none
    mixup         α of MixUp's share; 0: off
    cutmix        α of CutMix's share; 0: off
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["imagenet"] = "imagenet"
    path: Path = Field(description="training shards")
    evaluation_path: Path | None = Field(None, description="null: no evaluation")
    workers: int = Field(4, ge=0, description="processes per rank; 0: in the training process")
    shuffle: int = Field(16_384, ge=1, description="encoded images in the shuffle buffers of all ranks")
    lanes: int | None = Field(
        None,
        ge=1,
        description="shards read in parallel; reading is cheapest with a multiple of the data ranks. "
        "null: the greatest power of two up to the number of shards, at most 512. Determines the order",
    )
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    rand_augment: RandAugmentConfig | None = RandAugmentConfig(operations=2, magnitude=9)
    mixup: float = Field(0.8, ge=0, allow_inf_nan=False)
    cutmix: float = Field(1.0, ge=0, allow_inf_nan=False)

    @field_validator("crop_scale")
    @classmethod
    def _shares(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("should be two shares of the area in (0, 1], the smaller first")
        return scale

    @model_validator(mode="after")
    def _two_folders(self) -> Self:
        if self.evaluation_path == self.path:
            raise ValueError(f"evaluation_path={self.path}: is also the folder of the training images")
        return self

    def check(self, model: ModelConfig) -> None:
        """Raise UserError for a model that cannot take this data."""
        if model.kind != "vit":
            raise UserError(f"model.kind={model.kind}: data.kind=imagenet needs vit")
        if model.channels != 3:
            raise UserError(f"model.channels={model.channels}: data.kind=imagenet needs 3")

    def build(self, model: ModelConfig, seed: int) -> "Imagenet":
        """The source; raises UserError for folders it cannot use."""
        assert model.kind == "vit"
        return Imagenet(self, model.image_shape, model.classes, seed)


class Imagenet:
    """Pixels uint8 [B, height, width, 3] and labels int64 [B]; see `Source` for the methods.

    On the device, training batches become float32 [B, 3, height, width] and class shares [B, classes].
    Raises UserError for folders that cannot be used.
    """

    unit = "images"
    shown_in_columns: tuple[str, ...] = ()

    def __init__(self, config: ImagenetConfig, image_shape: tuple[int, int], classes: int, seed: int) -> None:
        self.config, self.image_shape, self.classes = config, image_shape, classes
        self.task = Classification(top5=True)
        self.images = _image_set("path", config.path, classes)
        self.evaluated = (
            _image_set("evaluation_path", config.evaluation_path, classes) if config.evaluation_path else None
        )
        if self.evaluated and self.evaluated.classes != self.images.classes:
            raise UserError(
                f"data.evaluation_path={config.evaluation_path}: its classes are not those of "
                f"data.path={config.path}; prepare it with the same --classes"
            )
        lanes = config.lanes or default_lanes(len(self.images.paths))
        self.order = Order(self.images.counts, lanes, config.shuffle, seed)
        self.cropping = Cropping(image_shape, config.crop_scale, config.flip, seed)
        augment = config.rand_augment
        self.rand_augment = RandAugment(augment.operations, augment.magnitude) if augment else None
        self.mix = Mix(config.mixup, config.cutmix)

    @property
    def evaluations(self) -> dict[str, str]:
        return {"validation": "ImageNet"} if self.evaluated else {}

    def train_batches(
        self, start: int, batch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        workers = max(1, self.config.workers)
        if len(self.images.paths) < world * workers:
            raise UserError(
                f"data.path={self.config.path}: {len(self.images.paths)} shards are too few for {world} "
                f"data ranks × data.workers={workers}: at least {world * workers} shards are needed; "
                "prepare with a smaller --shard-mb or lower data.workers"
            )
        loader = Loader(self.images, self.config.workers)
        return loader.training(self.order, self.cropping, start, batch // (accumulate * world), rank, world)

    def evaluation_batches(self, name: str, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        assert self.evaluated, name
        return Loader(self.evaluated, self.config.workers).evaluation(self.image_shape, batch, rank, world)

    def on_device(self, batch: Batch, training: bool = False) -> Batch:
        images = to_float(batch.inputs)
        if not training:
            return Batch(normalise(images), batch.targets)
        if self.rand_augment:
            images = self.rand_augment(images)
        images, targets = self.mix(images, soft_targets(batch.targets, self.classes))
        return Batch(normalise(images), targets)


def _image_set(key: str, folder: Path, classes: int) -> ImageSet:
    try:
        manifest = read_manifest(folder)
        check_shards(folder, manifest)
    except UserError as error:
        raise UserError(f"data.{key}={error}") from None
    if len(manifest.classes) != classes:
        raise UserError(f"model.classes={classes}: data.{key}={folder} has {len(manifest.classes)} classes")
    return ImageSet(folder, manifest)
