"""`translution prepare imagenet`: what comes out, what is left out, and what goes on after a stop."""

import hashlib
import io
import json
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from parallel.errors import UserError
from tests.trainer.data.images.image_folders import class_folders
from trainer.data.images.manifest import read_manifest
from trainer.data.images.prepare.prepare import prepare
from trainer.data.images.prepare.prepare_log import PROGRESS

CLASSES, IMAGES = 5, 4
SMALL: dict[str, Any] = {"shard_mb": 0.012, "workers": 0}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "in", CLASSES, IMAGES)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_is_in_a_shard_under_its_class_number(source: Path, tmp_path: Path):
    out = tmp_path / "out"
    manifest = prepare(source, out, **SMALL)
    assert manifest.classes == [f"n{label:08d}" for label in range(CLASSES)]
    assert manifest.samples == CLASSES * IMAGES
    assert len(manifest.shards) > 3
    assert {p.name for p in out.iterdir()} == {"manifest.json", *(shard.file for shard in manifest.shards)}
    urls = [str(out / shard.file) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))  # pyright: ignore
    assert len({sample["__key__"] for sample in samples}) == manifest.samples
    found = sorted((int(sample["cls"]), sample["jpg"]) for sample in samples)
    inputs = [(label, p.read_bytes()) for label in range(CLASSES) for p in source.glob(f"n{label:08d}/*")]
    assert found == sorted(inputs)
    assert [label for label, _ in found] != [int(sample["cls"]) for sample in samples]  # shuffled


def test_the_manifest_counts_and_checksums_each_shard(source: Path, tmp_path: Path):
    manifest = prepare(source, tmp_path / "out", **SMALL)
    for shard in read_manifest(tmp_path / "out").shards:
        content = (tmp_path / "out" / shard.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            assert len(tar.getnames()) == 2 * shard.samples
    counts = [shard.samples for shard in manifest.shards]
    assert max(counts) - min(counts) <= 1


def test_processes_and_repetition_change_no_byte_and_another_seed_the_order(source: Path, tmp_path: Path):
    for name, changed in {"one": {}, "two": {"workers": 2}, "other": {"seed": 1}}.items():
        prepare(source, tmp_path / name, **{**SMALL, **changed})
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one["shard-000000.tar"] != other["shard-000000.tar"]


def test_resized_images_have_that_short_side(source: Path, tmp_path: Path):
    manifest = prepare(source, tmp_path / "out", resize_short=24, workers=0)
    with tarfile.open(tmp_path / "out" / manifest.shards[0].file) as tar:
        for name in tar.getnames():
            if name.endswith(".jpg"):
                file = tar.extractfile(name)
                assert file
                assert Image.open(file).size == (28, 24)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_after_a_kill_a_rerun_goes_on_and_makes_the_same_bytes(
    source: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
):
    prepare(source, tmp_path / "whole", **SMALL)
    from trainer.data.images.prepare import prepare as image_prepare

    made = []

    def until_killed(piece):
        if len(made) == after:
            (piece.out / f".shard-{piece.number:06d}.tar.99.new").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        made.append(piece.number)
        return write(piece)

    write = image_prepare.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(image_prepare, "write_shard", until_killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", **SMALL)
    with (tmp_path / "out" / PROGRESS).open("a") as record:
        record.write('{"number": 3, "sh')  # a line that was being written
    again = []
    monkeypatch.setattr(
        image_prepare, "write_shard", lambda piece: (again.append(piece.number), write(piece))[1]
    )
    prepare(source, tmp_path / "out", **SMALL)
    assert not set(again) & set(made)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_process_leaves_no_worker_and_a_rerun_finishes(tmp_path: Path):
    source = class_folders(tmp_path / "in", 3, 60)
    out = tmp_path / "out"
    words = ["--input", source, "--out", out, "--shard-mb", "0.01", "--workers", "2"]
    command = [
        sys.executable,
        "-c",
        "from launch.cli import main; main()",
        "prepare",
        "imagenet",
        *map(str, words),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not list(out.glob("shard-*.tar")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.stdout
        process.stdout.read()  # ends when the last process that holds the pipe does
    manifest = prepare(source, out, shard_mb=0.01, workers=0)
    assert manifest.samples == 180
    assert manifest == prepare(source, tmp_path / "whole", shard_mb=0.01, workers=0)


def test_unreadable_images_are_skipped_counted_and_listed(
    source: Path, tmp_path: Path, translution: Callable
):
    folder = source / "n00000001"
    (folder / "text.JPEG").write_text("no image at all")
    (folder / "torn.JPEG").write_bytes((folder / "0.JPEG").read_bytes()[:-300])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not taken for an image")
    done = translution("prepare", "imagenet", "--input", source, "--out", tmp_path / "out", "--workers", 0)
    assert done.code == 0, done.err
    assert "20 images of 5 classes in 1 shards, 0.00 GB; skipped 3, listed in manifest.json" in done.out
    assert "skipped: n00000001/text.JPEG: no image" in done.out
    manifest = read_manifest(tmp_path / "out")
    assert {skip.file: skip.why for skip in manifest.skipped}.keys() == {
        "n00000001/text.JPEG",
        "n00000001/torn.JPEG",
        "n00000001/empty.jpg",
    }
    assert any("truncated" in skip.why for skip in manifest.skipped)


def test_a_rerun_of_what_is_whole_does_nothing(source: Path, tmp_path: Path):
    one = prepare(source, tmp_path / "out", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(source, tmp_path / "out", **SMALL) == one
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_class_list_fixes_the_numbers(source: Path, tmp_path: Path):
    names = [f"n{label:08d}" for label in (7, 4, 3, 2, 1, 0)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    manifest = prepare(source, tmp_path / "out", class_list=tmp_path / "classes.txt", workers=0)
    assert manifest.classes == names
    with tarfile.open(tmp_path / "out" / manifest.shards[0].file) as tar:
        seen = {
            int(file.read()) for name in tar.getnames() if ".cls" in name and (file := tar.extractfile(name))
        }
    assert seen == {1, 2, 3, 4, 5}


def emptied(source: Path) -> None:
    for path in (source / "n00000002").iterdir():
        path.unlink()


def unfoldered(source: Path) -> None:
    for path in source.glob("*/*"):
        path.unlink()
    for path in source.iterdir():
        path.rmdir()


def spoilt(source: Path) -> None:
    for path in source.glob("*/*"):
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (None, {"--input": "nowhere"}, "--input nowhere: no such folder"),
        (emptied, {}, "the class folder n00000002 holds no image; fill or remove it"),
        (unfoldered, {}, "holds no class folders"),
        (spoilt, {}, "none of 20 files tried is an image"),
        (None, {"--classes": "nowhere.txt"}, "--classes nowhere.txt: cannot be read: No such file"),
        (lambda source: (source.parent / "out").mkdir() or (source.parent / "out" / "x").touch(), {},
         "is not empty (holds x); name another folder"),
        (None, {"--out": "/proc/none"}, "/proc/none: cannot be written"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    source: Path,
    tmp_path: Path,
    translution: Callable,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object] | None,
    options: dict[str, str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    if spoil:
        spoil(source)
    words = {"--input": source, "--out": tmp_path / "out", "--workers": 0} | options
    done = translution("prepare", "imagenet", *(word for pair in words.items() for word in pair))
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_other_settings_than_those_begun_with_are_refused(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "out", **SMALL)
    with pytest.raises(UserError, match="was begun with seed=0, now it is 1; name another folder"):
        prepare(source, tmp_path / "out", **{**SMALL, "seed": 1})
    (source / "n00000000" / "0.JPEG").rename(source / "n00000000" / "new.JPEG")
    with pytest.raises(UserError, match="was begun with input_sha256="):
        prepare(source, tmp_path / "out", **SMALL)


def test_a_full_disk_is_one_line_and_a_rerun_goes_on(source: Path, tmp_path: Path):
    """The system's limit on the size of files stands in for a full disk: the same error path."""
    prepare(source, tmp_path / "whole", **SMALL)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            prepare(source, tmp_path / "out", **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "shard-000000.tar: cannot be written; run the command again to go on: " in str(error.value)
    assert not list((tmp_path / "out").glob("*.tar*"))
    prepare(source, tmp_path / "out", **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_too_little_room_is_told_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from trainer.data.images.prepare import prepare as image_prepare

    monkeypatch.setattr(image_prepare.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"about 0\.0 GB are needed, 0\.0 GB are free; free some space"):
        prepare(source, tmp_path / "out", **SMALL)
    assert not list((tmp_path / "out").glob("shard*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 3}, "samples is 3, its shards hold 20; prepare it again"),
        ({"format": "other"}, "not a manifest of images: format"),
        ({"shards": "none"}, "not a manifest of images: shards"),
    ],
)
def test_a_damaged_manifest_is_named(source: Path, tmp_path: Path, change: dict, message: str):
    prepare(source, tmp_path / "out", workers=0)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path / "out")
    assert message in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"holds no manifest\.json; it is not prepared, or not to the end"):
        read_manifest(tmp_path / "out")
