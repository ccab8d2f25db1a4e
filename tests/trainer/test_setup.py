"""Setting up a run: checked once, before any process meets another."""

from pathlib import Path

import pytest

from trainer.config.errors import ConfigError
from trainer.setup import set_up


def test_a_study_is_set_up_with_the_config_and_data_of_each_net(config_file: Path):
    setup = set_up(str(config_file), ["study={data.train: [static, dynamic]}"], None)
    assert [member.config.name for member in setup.members] == ["train=static", "train=dynamic"]
    assert [list(source.evaluations) for source in setup.sources] == [["static", "dynamic"], ["dynamic"]]


def test_the_nets_of_a_study_share_one_mesh(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError) as error:
        set_up(str(config_file), ["study={parallel.offset: [1, 2]}"], None)
    assert str(error.value) == (
        "study: offset=2 would train on data 1 × offset 2 × tensor 1, offset=1 on data 2 × offset 1 × "
        "tensor 1; the nets of a study share one mesh"
    )
