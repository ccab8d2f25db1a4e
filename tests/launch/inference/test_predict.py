"""`translution predict`: a file is classified as the net's evaluation would."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from launch.inference.load import load_net
from launch.inference.predict import predict
from trainer.config.run import load_config
from trainer.data.digits.mnist import load_digits

JPEG = Path(__file__).parents[2] / "assets" / "imagenet" / "imagenet_00_243.jpg"


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test image, 28 × 28."""
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(load_digits(None).test_images[0]).save(path)
    return path


@torch.no_grad()
def evaluated(run: Path) -> str:
    """The most probable class of the first test image and its probability, by the data of the run."""
    source = load_config(run / "config.yaml", []).build_source()
    batch = source.on_device(next(source.evaluation_batches("static", 1)))
    shares = load_net(run, "cpu")(batch.inputs).softmax(1)[0]
    return f"{int(shares.argmax())} {100 * float(shares.max()):.1f}"


def test_a_digit_is_classified_as_in_the_evaluation(
    image_run: Path, digit: Path, tmp_path: Path, translution: Callable
):
    with Image.open(digit) as image:
        ImageOps.invert(image).save(tmp_path / "dark.png")
    assert translution("export", image_run, "--out", tmp_path / "net").code == 0
    table = predict(image_run, [digit, tmp_path / "dark.png"], 3, None, "cpu")
    assert [len(cells) for cells in table.rows.values()] == [3, 3]
    assert [cells["1."] for cells in table.rows.values()] == 2 * [evaluated(image_run)]
    exported = predict(tmp_path / "net", [digit], 3, None, "cpu")
    assert exported.rows[str(digit)] == table.rows[str(digit)]
    done = translution("predict", image_run, digit, "--top", 20)
    assert done.code == 0
    assert len(done.out.split("\n")[2].split()) == 10  # all classes


def test_a_large_image_is_shrunk_and_classes_have_names(image_run: Path, tmp_path: Path):
    Image.fromarray(np.zeros((300, 200), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "names").write_text("".join(f"digit{n}\n" for n in range(10)))
    table = predict(image_run, [tmp_path / "large.png", JPEG], 1, tmp_path / "names", "cpu")
    assert all(cells["1."].startswith("digit") for cells in table.rows.values())


def test_what_is_no_image_is_one_line(
    image_run: Path, text_run: Path, digit: Path, tmp_path: Path, translution: Callable
):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(JPEG.read_bytes()[:2000])
    (tmp_path / "names").write_text("one\n")
    for arguments, says in [
        (
            (image_run, digit, tmp_path / "text.png"),
            f"{tmp_path / 'text.png'}: is not an image of a known format",
        ),
        ((image_run, tmp_path / "cut.jpg"), f"{tmp_path / 'cut.jpg'}: is not a whole image"),
        ((image_run, tmp_path / "none.png"), f"{tmp_path / 'none.png'}: no such file"),
        ((image_run, tmp_path), f"{tmp_path}: is a folder"),
        ((image_run, digit, "--classes", tmp_path / "names"), "names 1 classes, the net has 10"),
        ((text_run, digit), "holds a language net; try translution generate"),
    ]:
        done = translution("predict", *arguments)
        assert done.code == 2
        assert says in done.err
        assert len(done.err.splitlines()) == 1
