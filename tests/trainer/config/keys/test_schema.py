"""The JSON Schemas in configs/ are those of the code, accept every config that we ship, and find mistakes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from parallel.code_folder import CODE_FOLDER
from trainer.config.keys.meanings import key_meanings
from trainer.config.keys.schema import sections_of
from trainer.config.run import RunConfig

CONFIGS = CODE_FOLDER / "configs"
SHIPPED = sorted(CONFIGS.rglob("*.yaml"))
COMMENT = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    return Draft202012Validator(json.loads((CONFIGS / "schema.json").read_text()))


def test_the_files_are_what_the_commands_print(translution: Callable):
    """After a change of a config class: translution config --schema > configs/schema.json, and so on."""
    for options, file in [
        (["--schema"], CONFIGS / "schema.json"),
        (["--schema", "--cluster"], CONFIGS / "cluster" / "schema.json"),
        (["--keys"], CODE_FOLDER / "docs" / "config_keys.md"),
    ]:
        assert translution("config", *options).out == file.read_text()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_config_names_its_schema_and_fits_it(path: Path):
    found = COMMENT.search(path.read_text())
    assert found, "needs a comment line with its schema, like the others"
    file = (path.parent / found[1]).resolve()
    assert file == (CONFIGS / ("cluster" if path.parent.name == "cluster" else "") / "schema.json").resolve()
    errors = Draft202012Validator(json.loads(file.read_text())).iter_errors(yaml.safe_load(path.read_text()))
    assert not [error.message for error in errors]


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({}, True),
        ({"base": "other.yaml", "model": {"mixer": {"heads": 3}}}, True),  # its kind is in the base
        ({"model": {"mixer": {"kind": "my.module:MyMixer", "anything": 1}}}, True),
        ({"model": {"stages": [{"layers": 1, "reduce": {"kind": "my.module:MyReducer"}}]}}, True),
        ({"model": {"position": "rope", "stem": "convolutions"}}, True),
        ({"model": {"position": "my.module:MyPosition"}}, True),
        ({"model": {"image_size": [96, 160]}, "train": {"clip": None}}, True),
        ({"train": {"stepz": 3}}, False),
        ({"train": {"steps": "many"}}, False),
        ({"train": {"lr": 0}}, False),
        ({"model": {"position": "ropes"}}, False),
        ({"model": {"mixer": {"kind": "attention", "relative": "v"}}}, False),
        ({"precision": "fp64"}, False),
    ],
)
def test_the_schema_accepts_parts_of_configs_and_finds_mistakes(
    values: dict[str, Any], fits: bool, schema: Draft202012Validator
):
    assert schema.is_valid(values) is fits


def test_a_time_limit_may_be_text():
    cluster = Draft202012Validator(json.loads((CONFIGS / "cluster" / "schema.json").read_text()))
    assert cluster.is_valid({"time": "24:00:00", "gpus_per_node": 8})
    assert not cluster.is_valid({"gpus": 8})


@pytest.mark.parametrize("section", sections_of(RunConfig), ids=lambda section: section.__name__)
def test_every_key_has_a_meaning(section: type):
    """A Field's description, or a line `key  meaning` in the docstring of the section."""
    assert set(section.model_fields) - set(key_meanings(section)) == set()
