"""`translution generate`: text from runs and exports, and one line for what cannot be."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.inference.words import Words

BPE = Path(__file__).parents[2] / "assets" / "gpt2_excerpt.tiktoken"


def test_a_run_and_its_export_write_the_same_text_with_and_without_a_cache(
    text_run: Path, tmp_path: Path, translution: Callable
):
    export = tmp_path / "net.safetensors"
    assert translution("export", text_run, "--out", export).code == 0
    options = ["--prompt", "Call me", "--tokens", 20, "--seed", 3]
    done = translution("generate", text_run, *options)
    assert done.code == 0, done.err
    assert done.out.startswith("Call me")
    assert done.err.startswith("20 tokens; the first after ")
    assert done.err.strip().endswith("with a cache")
    assert translution("generate", export, *options, "--no-cache").out == done.out
    assert translution("generate", text_run, *options[:-1], 4).out != done.out


def test_a_character_waits_for_its_last_byte():
    words = Words(256, 10, lambda text: list(text.encode()), lambda one: bytes([one]))
    assert list(words.stream("aé".encode())) == ["a", "", "é", ""]
    assert list(words.stream(b"\xc3")) == ["", "�"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--prompt", "thirteen byte"], "--prompt: has 13 tokens, the net's context model.tokens=12"),
        (["--bpe", BPE], "has no room"),
        (["--bpe", "missing"], "--bpe missing: no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(options: list[str], says: str, text_run: Path, translution: Callable):
    done = translution("generate", text_run, *options)
    assert done.code == 2
    assert done.out == ""
    assert says in done.err
    assert len(done.err.splitlines()) == 1


def test_a_net_for_images_no_run_and_no_export_are_one_line(
    image_run: Path, tmp_path: Path, translution: Callable
):
    (tmp_path / "other").write_text("text")
    for path, says in [
        (image_run, "holds a net for images; try translution predict"),
        (tmp_path, "is no run, and is no file or folder of"),
        (tmp_path / "none", "no such run or export"),
        (
            tmp_path / "other",
            "is no run, and is no file or folder of `translution export --format safetensors`",
        ),
    ]:
        done = translution("generate", path)
        assert done.code == 2
        assert f"{path}" in done.err
        assert says in done.err
        assert len(done.err.splitlines()) == 1
