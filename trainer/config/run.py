"""A run's config: a YAML file, then `key=value` overrides, then checked and typed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models import ModelConfig
from parallel.engine.optimizer import OptimizerConfig
from parallel.errors import UserError
from parallel.mesh import ParallelConfig
from trainer.config.compare import CompareConfig
from trainer.config.errors import ConfigError, explain
from trainer.data.digits.moving_mnist import MovingMnistConfig
from trainer.data.images.imagenet import ImagenetConfig
from trainer.data.source import Source
from trainer.data.synthetic import SyntheticConfig
from trainer.data.text.datasets import BookConfig, OpenWebTextConfig
from trainer.faults.config import FaultsConfig
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
    log_every: int = Field(10, ge=1)
    evaluate_every: int | None = Field(None, ge=1, description="null: only at the end")
    evaluate_batch: int = Field(250, ge=1)
    checkpoint_every: int | None = Field(100, ge=1, description="null: only at the end")
    keep_checkpoints: int = Field(2, ge=1)
    pictures_every: int | None = Field(None, ge=1, description="banks and attention, to TensorBoard")
    profile: ProfileConfig | None = Field(None, description="{from: 10, steps: 5}: into the run directory")
    init_from: Path | None = Field(None, description="run, checkpoint or export to take weights from")


class RunConfig(BaseModel):
    """Everything that determines a run: two runs of one config have the same losses."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[^/]+$", description="default: the file's stem")
    run_dir: Path | None = Field(None, description="null: runs/<name>-<time>")
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = Field(False, description="on CUDA: float32 products with 10-bit mantissas, faster")
    deterministic: bool = Field(False, description="only operations that repeat to the bit; slower on CUDA")
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
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
    merged = _read(path)
    for override in overrides:
        _override(merged, override)
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    assert isinstance(values, dict)
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
        _set(tree, key, value)
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


def _read(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """The file's values, over those of its `base`. `above` are the files that named this one."""
    own = _read_one(path)
    base = own.pop("base", None)
    if base is None:
        return own
    above = (*above, path.resolve())
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base={base}: must be the path of another config file")
    if (path.parent / base).resolve() in above:
        raise ConfigError(f"{path}: base={base}: leads back to this file")
    below = _read(path.parent / base, above)
    if "study" in own:
        below.pop("study", None)
    values = (OmegaConf.to_container(tree) for tree in (below, own))
    return OmegaConf.create(_layered(*values))  # pyright: ignore[reportArgumentType]


def _layered(base: dict[Any, Any], own: dict[Any, Any]) -> dict[Any, Any]:
    """`own` over `base`, section by section; a section of another kind replaces the base's."""
    merged = dict(base)
    for key, value in own.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            kind = value.get("kind", below.get("kind"))
            value = _layered(below, value) if kind == below.get("kind") else value
        merged[key] = value
    return merged


def _read_one(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason})") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}:{line} is not YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: is not YAML: {_first_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: holds a list, expected `key: value` lines")
    return loaded


def _override(tree: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, as in train.steps=600")
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])
        _set(tree, key.strip(), OmegaConf.to_container(value, resolve=False)["value"])  # pyright: ignore
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {override!r}: {_first_line(error)}") from None


def _set(tree: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(tree, key, value, merge=False, force_add=True)
    except (OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"{key}={value}: cannot be set: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
