"""The config: which value wins, and one line for every mistake."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trainer.config.errors import ConfigError, explain
from trainer.config.run import load_config, with_values


def test_overrides_win_over_the_file_and_the_file_over_defaults(config_file: Path):
    config = load_config(config_file, ["train.lr=1e-4", "train.batch=16", "train.clip=null"])
    assert (config.train.lr, config.train.batch, config.train.clip) == (1e-4, 16, None)
    assert config.train.steps == 6  # the file's
    assert config.train.weight_decay == 0.05  # the default


def test_the_last_of_two_overrides_counts(config_file: Path):
    assert load_config(config_file, ["seed=1", "seed=2"]).seed == 2


def test_the_name_defaults_to_the_files_stem(config_file: Path):
    assert load_config(config_file, []).name == "tiny"
    assert load_config(config_file, ["name=other"]).name == "other"


def test_an_override_can_index_a_list(config_file: Path):
    config = load_config(config_file, ["train.betas=[0.8,0.9]", "train.betas[1]=0.95"])
    assert config.train.betas == (0.8, 0.95)


def test_study_null_turns_the_study_off(config_file: Path):
    with_study = config_file.read_text() + "study: {data.train: [static, dynamic]}\n"
    config_file.write_text(with_study)
    assert load_config(config_file, []).study == {"data.train": ["static", "dynamic"]}
    assert load_config(config_file, ["study=null"]).study is None


def test_with_values_changes_the_keys_and_nothing_else(config_file: Path):
    config = load_config(config_file, [])
    changed = with_values(config, {"data.train": "dynamic", "train.lr": 0.5})
    assert (changed.data.model_dump()["train"], changed.train.lr) == ("dynamic", 0.5)
    assert with_values(changed, {"data.train": "static", "train.lr": 1e-2}) == config


def test_a_file_can_build_on_another_and_override_it(config_file: Path):
    folder = config_file.parent / "sub"
    folder.mkdir()
    (folder / "middle.yaml").write_text("base: ../tiny.yaml\nmodel: {width: 16}\nseed: 3\n")
    top = folder / "top.yaml"
    top.write_text("base: middle.yaml\nseed: 4\nmodel: {mixer: {kind: attention, heads: 4}}\n")
    config = load_config(top, ["train.lr=0.5"])
    assert (config.name, config.seed, config.train.lr, config.train.steps) == ("top", 4, 0.5, 6)
    assert (config.model.width, config.model.depth) == (16, 1)
    # The mixer is of another kind, so nothing of the base's one is left; heads alone would merge.
    assert config.model.mixer.model_dump(exclude_unset=True) == {"kind": "attention", "heads": 4}
    top.write_text("base: middle.yaml\nmodel: {mixer: {heads: 4}}\n")
    mixer = load_config(top, []).model.mixer
    assert (mixer.kind, mixer.heads, mixer.head_dim) == ("translution", 4, 4)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml: no such config file"),
        ("tiny.yaml", "base=tiny.yaml: leads back to this file"),
        ("[a, b]", "must be the path of another config file"),
    ],
)
def test_a_wrong_base_is_named(config_file: Path, base: str, message: str):
    config_file.write_text(config_file.read_text() + f"base: {base}\n")
    with pytest.raises(ConfigError) as error:
        load_config(config_file, [])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown key train.stepz=3: did you mean train.steps?"),
        ("modle.width=3", "unknown key modle={'width': 3}: did you mean model?"),
        ("model.mixer.haeds=3", "unknown key model.mixer.haeds=3: did you mean model.mixer.heads?"),
        ("train.steps=many", "train.steps=many: should be a valid integer"),
        ("train.steps=0", "train.steps=0: should be greater than or equal to 1"),
        ("train.lr=.nan", "train.lr=nan: should be a finite number"),
        ("train.betas=[0.9,2]", "train.betas[1]=2: should be less than 1"),
        ("train=3", "train=3: must be a section"),
        ("data.train=sideways", "data.train=sideways: should be 'static' or 'dynamic'"),
        ("data.kind=cifar", "data.kind=cifar: must be one of 'moving_mnist'"),
        ("model.width=null", "model.width=null: should be a valid integer"),
        ("model.classes=9", "model.classes=9: data.kind=moving_mnist"),
        ("name=a/b", "name=a/b: "),
        ("train.steps.x=3", "train.steps={'x': 3}: should be a valid integer"),
        ("study={data.train: []}", "data.train has no values"),
        ("steps", "override 'steps': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("seed=[", "override 'seed=['"),
        ("name=${nothing}", "nothing"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(
    config_file: Path, override: str, message: str
):
    with pytest.raises(ConfigError) as error:
        load_config(config_file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1, 2\n", "line 2 is not YAML"),
        ("train: 1\ntrain: 2\n", "duplicate key train"),
        ("- 1\n", "holds a list"),
        ("", "model is missing: it must be given (and 2 more problems)"),
    ],
)
def test_a_file_that_is_not_a_config_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path, [])
    assert message in str(error.value)


def test_a_missing_config_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file"):
        load_config(tmp_path / "nowhere.yaml", [])


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["dog"]
    tricks: list[int] | None = None


class House(BaseModel):
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]


class Tricks(BaseModel):
    """A section that a user's own module defines."""

    model_config = ConfigDict(extra="forbid")
    kind: str
    tricks: int


def _load(value: dict) -> Any:
    if value["kind"] == f"{__name__}:Tricks":
        return Tricks.model_validate(value)
    raise ValueError("no module named nowhere\n(on the path)")


class Kennel(BaseModel):
    pet: Annotated[Cat | Dog | Tricks, BeforeValidator(_load)]


@pytest.mark.parametrize(
    ("pet", "line"),
    [
        ({"kind": "nowhere:Pet"}, "pet.kind=nowhere:Pet: no module named nowhere (on the path)"),
        ({"kind": f"{__name__}:Tricks", "tricks": "x"}, "pet.tricks=x: should be a valid integer"),
        ({"kind": f"{__name__}:Tricks", "trick": 1}, "unknown key pet.trick=1: did you mean pet.tricks? "),
    ],
)
def test_a_section_of_a_users_own_is_explained_in_one_line(pet: dict, line: str):
    with pytest.raises(ValidationError) as error:
        Kennel.model_validate({"pet": pet})
    explained = explain(error.value, Kennel, {"pet": pet})
    assert explained.startswith(line)
    assert "\n" not in explained


@pytest.mark.parametrize(
    ("pet", "line"),
    [
        (
            {"kind": "cat", "livez": 3, "lives": 9},
            "unknown key pets[0].livez=3: did you mean pets[0].lives? valid here: kind, lives",
        ),
        ({"kind": "cat", "lives": "x"}, "pets[0].lives=x: should be a valid integer"),
        ({"kind": "cat"}, "pets[0].lives is missing"),
        ({"kind": "cow"}, "pets[0].kind=cow: must be one of 'cat', 'dog'"),
        ({"lives": 9}, "pets[0].kind is missing"),
        ({"kind": "dog", "tricks": [1, "x"]}, "pets[0].tricks[1]=x: should be a valid integer"),
    ],
)
def test_union_tags_are_not_part_of_a_key(pet: dict, line: str):
    with pytest.raises(ValidationError) as error:
        House.model_validate({"pets": [pet]})
    assert explain(error.value, House, {"pets": [pet]}).startswith(line)
