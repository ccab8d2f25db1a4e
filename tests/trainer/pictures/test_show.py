"""`translution show`: pictures of runs, and one page that needs nothing else."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models import OffsetGrid
from tests.tiny import TINY
from trainer.config.run import parse_config
from trainer.pictures.attention import carried
from trainer.pictures.banks import by_offset
from trainer.pictures.load import rank_loads
from trainer.pictures.show import show


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that adds its pictures to TensorBoard after the first."""
    from trainer.train import train

    folder = tmp_path_factory.mktemp("show")
    values = TINY | {"train": TINY["train"] | {"steps": 2, "log_every": 1, "pictures_every": 1}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return train(str(folder / "tiny.yaml"), [f"run_dir={folder / 'run'}"])


@pytest.fixture(scope="module")
def shown(run: Path) -> Path:
    out = run.parent / "pictures"
    show([run], out)
    return out


def test_every_picture_is_a_file_and_in_the_page(shown: Path):
    names = {path.stem for path in shown.glob("*.png")}
    assert names == {"curves", "banks", "attention-0", "offsets"}
    page = (shown / "index.html").read_text()
    assert page.count("<img") == 4
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)  # nothing from elsewhere
    assert "http" not in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_opens_the_page(shown: Path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = ["chromium", *options, "--dump-dom", (shown / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "<h2" in done.stdout
    assert done.stdout.count("<img") == 4


def test_the_run_adds_them_to_tensorboard(run: Path):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"pictures/banks", "pictures/attention_0", "pictures/offsets"} <= set(events.Tags()["images"])
    assert [image.step for image in events.Images("pictures/banks")] == [1]


def test_a_net_that_no_rank_holds_is_not_drawn_while_it_trains(config_file: Path, translution: Callable):
    overrides = ("train.pictures_every=1", "parallel.engine=deepspeed", "parallel.zero=3")
    outcome = translution("train", config_file, *overrides)
    assert outcome.code == 2
    assert "train.pictures_every=1: with ZeRO-3 no rank holds a whole net" in outcome.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--layer", 5], "--layer 5: the net has layers 0 to 0"),
        (["--head", 2], "--head 2: layer 0 has"),
    ],
)
def test_what_the_net_has_not_is_refused(run: Path, options: list, why: str, translution: Callable):
    outcome = translution("show", run, "--out", run.parent / "none", *options)
    assert outcome.code == 2
    assert why in outcome.err


def test_numbers_lie_at_their_offsets():
    grid = OffsetGrid((2, 3), class_token=True, share="clip(1)")
    numbers = torch.arange(float(grid.num_entries))
    shown = by_offset(grid, numbers)
    assert shown.shape == (3, 5)
    assert shown[0, 4] == shown[0, 3] == numbers[grid.entry((-1, 1))]


def test_the_weight_that_offsets_carry_is_a_mean_over_their_pairs():
    grid = OffsetGrid((2, 3), class_token=True)
    alpha = torch.zeros(1, 7, 7)
    alpha[0, 1 + 4, 1 + 0] = 0.5  # query (1, 1), key (0, 0): one of two pairs of offset (1, 1)
    means = carried(grid, alpha)
    assert means.shape == (1, 3, 5)
    assert means[0, 2, 3] == 0.25
    assert means.count_nonzero() == 1


def test_the_load_of_ranks_adds_up_to_the_net():
    config = parse_config(TINY | {"name": "net", "parallel": {"offset": 4, "tensor": 2}})
    loads = rank_loads(config)
    assert len(loads) == 8
    assert sum(pairs for pairs, _, _ in loads) == 2 * 9 * 9  # both tensor ranks visit all pairs
    assert sum(entries for _, entries, _ in loads) == 2 * 25
