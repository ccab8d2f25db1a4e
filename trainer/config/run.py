"""A run's config: a YAML file, then `key=value` overrides, then checked and typed."""

from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models import ModelConfig
from parallel.engine.optimizer import OptimizerConfig
from parallel.errors import UserError
from parallel.mesh import ParallelConfig
from trainer.config.compare import CompareConfig
from trainer.config.errors import ConfigError, explain
from trainer.config.layers import read_layers, set_value
from trainer.data.digits.moving_mnist import MovingMnistConfig
from trainer.data.images.imagenet import ImagenetConfig
from trainer.data.source import Source
from trainer.data.synthetic import SyntheticConfig
from trainer.data.text.datasets import BookConfig, OpenWebTextConfig
from trainer.faults.config import FaultsConfig
from trainer.reporting.loggers.config import LoggerName
from trainer.reporting.profiler import ProfileConfig

DataConfig = Annotated[
    MovingMnistConfig | ImagenetConfig | OpenWebTextConfig | BookConfig | SyntheticConfig,
    Field(discriminator="kind"),
]

NETS = "nets"  # the study key whose values are named: name → {key: value}
StudyConfig = dict[str, list[Any] | dict[str, dict[str, Any]]]


class TrainConfig(OptimizerConfig, FaultsConfig):
    """Length and batch size of training; how often to log, evaluate and save, in optimizer steps."""

    batch: int = Field(64, ge=1, description="global batch: samples per optimizer step")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    log_every: int = Field(10, ge=1, description="steps between two logs, each a wait for the device")
    evaluate_every: int | None = Field(None, ge=1, description="null: only at the end")
    evaluate_batch: int = Field(250, ge=1, description="samples of each data rank at once")
    checkpoint_every: int | None = Field(100, ge=1, description="null: only at the end")
    keep_checkpoints: int = Field(2, ge=1, description="the newest few")
    keep_every: int | None = Field(None, ge=1, description="also those of every so many steps, for good")
    verify_checkpoints: bool = Field(True, description="compare what is loaded with its checksums")
    save_in_background: bool = Field(True, description="write a copy, made in host memory, while training")
    loggers: list[LoggerName] = Field(
        ["tensorboard"], description="where scalars go besides metrics.jsonl: tensorboard, wandb, mlflow"
    )
    pictures_every: int | None = Field(
        None, ge=1, description="steps between pictures of banks and attention, to TensorBoard"
    )
    profile: ProfileConfig | None = Field(None, description="{from: 10, steps: 5}: into the run directory")
    init_from: Path | None = Field(None, description="run, checkpoint or export to take weights from")

    def logs_after(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.steps


class RunConfig(BaseModel):
    """Everything that determines a run: two runs of one config have the same losses."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[^/]+$", description="default: the file's stem")
    run_dir: Path | None = Field(None, description="null: runs/<name>-<time>")
    tags: list[str] = Field([], description="words by which `translution runs` finds it")
    note: str | None = Field(None, description="what to remember of it")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order of the data, dropout")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is a card")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: products; weights stay float32")
    tf32: bool = Field(False, description="on CUDA: float32 products with 10-bit mantissas, faster")
    deterministic: bool = Field(False, description="only operations that repeat to the bit; slower on CUDA")
    model: ModelConfig = Field(description="the net")
    data: DataConfig = Field(description="what it trains on")
    train: TrainConfig = Field(description="optimizer, length, logs and checkpoints")
    parallel: ParallelConfig = Field(ParallelConfig(), description="mesh and engine")
    study: StudyConfig | None = Field(None, description="nets to train: see trainer/config/study.py")
    compare: CompareConfig | None = Field(None, description="of `translution compare`, which resolves it")

    @field_validator("study")
    @classmethod
    def _values(cls, study: StudyConfig | None) -> StudyConfig | None:
        for key, values in (study or {}).items():
            if not values:
                raise ValueError(f"{key} has no values; give a list of at least one")
            if isinstance(values, dict) != (key == NETS):
                raise ValueError(f"{key}: a list of values is needed; only {NETS} names sets of values")
        return study or None

    def build_source(self) -> Source:
        """The data that `data` names, for this `model`; raises UserError for files it cannot use."""
        return self.data.build(self.model, self.seed)


def load_config(path: Path | str, overrides: list[str]) -> RunConfig:
    """Read the YAML file `path`, apply `key=value` overrides and check the result.

    The file's key `base` may name another file, relative to it, for values that it does not set
    itself; a section with another `kind` replaces the base's, and so does `study`.
    Override values are YAML: `train.lr=1e-4`, `study=null`, `train.betas=[0.9,0.95]`; keys may index
    lists: `train.betas[1]=0.9`. Raises ConfigError, one line with the key, its value and what is
    allowed.
    """
    path = Path(path)
    values = read_layers(path, overrides).values
    values.setdefault("name", path.stem)
    return parse_config(values)


def parse_config(values: dict[Any, Any]) -> RunConfig:
    """Check plain values; raises ConfigError."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, values)) from None
    try:
        config.data.check(config.model)
    except UserError as error:
        raise ConfigError(str(error)) from None
    return config


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """A copy of `config` with dotted keys set to new values, checked again."""
    # Leave unset fields out: their defaults may depend on what is set.
    tree = OmegaConf.create(config.model_dump(mode="json", exclude_unset=True))
    for key, value in values.items():
        set_value(tree, key, value)
    return parse_config(OmegaConf.to_container(tree))  # pyright: ignore[reportArgumentType]


def flat_values(config: RunConfig) -> dict[str, str]:
    """Every value of a config as text, by its dotted key."""
    return _flat(config.model_dump(mode="json"), "")


def _flat(values: dict[str, Any], prefix: str) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
