"""`translution config`: the origin of every value, and what differs between two configs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainer.config.layers import read_layers
from trainer.config.run import load_config
from trainer.config.shown import shown_config


@pytest.fixture
def top(config_file: Path) -> Path:
    """A file on a file on tests/tiny.py."""
    middle = config_file.with_name("middle.yaml")
    middle.write_text("base: tiny.yaml\nmodel: {width: 16}\ntrain: {betas: [0.8, 0.9]}\nseed: 3\n")
    top = config_file.with_name("top.yaml")
    top.write_text("base: middle.yaml\nseed: 4\nmodel: {mixer: {kind: attention, heads: 4}}\n")
    return top


def origins(text: str) -> dict[str, str]:
    """The origin on the line of each key that has one; keys are unique enough here."""
    lines = [line.split("#") for line in text.splitlines()]
    return {line[0].split(":")[0].strip(): line[1].strip() for line in lines if len(line) == 2}


def test_every_value_has_the_origin_that_decided_it(top: Path):
    overrides = ["train.lr=1e-4", "train.betas[1]=0.95", "model.mixer.head_dim=8"]
    found = origins(shown_config(top, overrides))
    folder = top.parent
    assert found["name"] == "name of the file"
    assert found["width"] == found["kind"].replace("tiny", "middle") == f"{folder}/middle.yaml"
    assert found["seed"] == found["heads"] == f"{folder}/top.yaml"
    assert found["lr"] == found["betas"] == found["head_dim"] == "command line"
    assert found["steps"] == f"{folder}/tiny.yaml"
    assert found["eps"] == "default"


def test_a_replaced_section_leaves_no_origin_of_its_values(top: Path):
    assert "model.mixer.head_dim" not in read_layers(top, []).origins  # tiny.yaml's is of another mixer
    replaced = read_layers(top, ["model.mixer={kind: attention}"]).origins
    assert [key for key in replaced if key.startswith("model.mixer")] == ["model.mixer.kind"]


def test_what_is_shown_is_the_same_config(top: Path, tmp_path: Path):
    again = tmp_path / "again.yaml"
    again.write_text(shown_config(top, ["train.lr=1e-4"]))
    config = load_config(top, ["train.lr=1e-4"])
    assert load_config(again, []).model_dump() == config.model_dump()
    study = yaml.safe_load(shown_config(top, ["study={train.lr: [0.1, 0.2]}"]))["study"]
    assert study == {"train.lr": [0.1, 0.2]}


def test_diff_lists_the_keys_that_differ(top: Path, tmp_path: Path, translution: Callable):
    done = translution("config", "diff", top, top.with_name("middle.yaml"))
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()[3:]}
    assert rows["seed"] == ["4", "3"]
    assert rows["model.mixer.heads"] == ["4", "2"]
    assert rows["model.mixer.relative"] == ["–", "qkv"]
    assert "train.lr" not in rows
    assert "are equal" in translution("config", "diff", top, top).out
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(shown_config(top, ["seed=9"]))
    assert translution("config", "diff", tmp_path / "run", top).out.split()[-3:] == ["seed", "9", "4"]


def test_a_study_is_cut_to_a_line_and_its_table_stays_narrow(top: Path, translution: Callable):
    study = {"train.lr": [0.1 + n for n in range(50)]}
    top.with_name("study.yaml").write_text(yaml.safe_dump({"base": "top.yaml", "study": study}))
    done = translution("config", "diff", top, top.with_name("study.yaml"))
    assert "…" in done.out
    assert max(map(len, done.out.splitlines())) < 250


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "config: needs one of a file, diff A B, --schema [--cluster] and --keys"),
        (["diff", "a.yaml"], "config diff: needs two files or runs, 1 given"),
        (["nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["nowhere.yaml", "--schema"], "needs one of"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str, translution: Callable):
    done = translution("config", *words)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1
