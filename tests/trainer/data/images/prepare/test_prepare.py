"""`translution prepare imagenet`: shards, skipped images, resuming, and errors."""

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


def test_every_image_is_in_a_shard_with_its_label(source: Path, tmp_path: Path):
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


def test_a_repetition_gives_the_same_bytes_and_another_seed_another_order(source: Path, tmp_path: Path):
    for name, changed in {"one": {}, "two": {}, "other": {"seed": 1}}.items():
        prepare(source, tmp_path / name, **{**SMALL, **changed})
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one["shard-000000.tar"] != other["shard-000000.tar"]


def test_resized_images_have_the_short_side_asked_for(source: Path, tmp_path: Path):
    manifest = prepare(source, tmp_path / "out", resize_short=24, workers=0)
    with tarfile.open(tmp_path / "out" / manifest.shards[0].file) as tar:
        for name in tar.getnames():
            if name.endswith(".jpg"):
                file = tar.extractfile(name)
                assert file
                assert Image.open(file).size == (28, 24)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_rerun_after_a_kill_resumes_and_gives_the_same_bytes(
    source: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
):
    prepare(source, tmp_path / "whole", **SMALL)
    from trainer.data.images.prepare import prepare as image_prepare

    written = []

    def until_killed(job):
        if len(written) == after:
            (job.out / f".shard-{job.number:06d}.tar.99.new").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(job.number)
        return write(job)

    write = image_prepare.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(image_prepare, "write_shard", until_killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", **SMALL)
    with (tmp_path / "out" / PROGRESS).open("a") as log:
        log.write('{"number": 3, "sh')  # a line that was cut off
    rewritten = []
    monkeypatch.setattr(
        image_prepare, "write_shard", lambda job: (rewritten.append(job.number), write(job))[1]
    )
    prepare(source, tmp_path / "out", **SMALL)
    assert not set(rewritten) & set(written)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_command_leaves_no_worker_and_a_rerun_without_workers_gives_the_same_bytes(tmp_path: Path):
    """The first shards are then written by two worker processes, the others by this process."""
    source = class_folders(tmp_path / "in", 3, 60)
    out = tmp_path / "out"
    arguments = ["--input", source, "--out", out, "--shard-mb", "0.01", "--workers", "2"]
    command = [
        sys.executable,
        "-c",
        "from launch.cli import main; main()",
        "prepare",
        "imagenet",
        *map(str, arguments),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not list(out.glob("shard-*.tar")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.stdout
        process.stdout.read()  # ends with the last process that has the pipe open
    manifest = prepare(source, out, shard_mb=0.01, workers=0)
    assert manifest.samples == 180
    prepare(source, tmp_path / "whole", shard_mb=0.01, workers=0)
    assert contents(out) == contents(tmp_path / "whole")


def test_unreadable_images_are_skipped_counted_and_listed(
    source: Path, tmp_path: Path, translution: Callable
):
    folder = source / "n00000001"
    (folder / "text.JPEG").write_text("no image")
    (folder / "torn.JPEG").write_bytes((folder / "0.JPEG").read_bytes()[:-300])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("ignored")
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


def test_a_rerun_after_the_end_writes_nothing(source: Path, tmp_path: Path):
    one = prepare(source, tmp_path / "out", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(source, tmp_path / "out", **SMALL) == one
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_class_list_determines_the_labels(source: Path, tmp_path: Path):
    names = [f"n{label:08d}" for label in (7, 4, 3, 2, 1, 0)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    manifest = prepare(source, tmp_path / "out", class_list=tmp_path / "classes.txt", workers=0)
    assert manifest.classes == names
    with tarfile.open(tmp_path / "out" / manifest.shards[0].file) as tar:
        seen = {
            int(file.read()) for name in tar.getnames() if ".cls" in name and (file := tar.extractfile(name))
        }
    assert seen == {1, 2, 3, 4, 5}


def empty_a_class(source: Path) -> None:
    for path in (source / "n00000002").iterdir():
        path.unlink()


def remove_all_folders(source: Path) -> None:
    for path in source.glob("*/*"):
        path.unlink()
    for path in source.iterdir():
        path.rmdir()


def overwrite_all(source: Path) -> None:
    for path in source.glob("*/*"):
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (None, {"--input": "nowhere"}, "--input nowhere: no such folder"),
        (empty_a_class, {}, "the class folder n00000002 has no image; fill or remove it"),
        (remove_all_folders, {}, "has no class folders"),
        (overwrite_all, {}, "none of 20 files tried is an image"),
        (None, {"--classes": "nowhere.txt"}, "--classes nowhere.txt: cannot be read: No such file"),
        (lambda source: (source.parent / "out").mkdir() or (source.parent / "out" / "x").touch(), {},
         "is not empty (holds x); choose another folder"),
        (None, {"--out": "/proc/none"}, "/proc/none: cannot be written"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    source: Path,
    tmp_path: Path,
    translution: Callable,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object] | None,
    options: dict[str, str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    if damage:
        damage(source)
    arguments = {"--input": source, "--out": tmp_path / "out", "--workers": 0} | options
    done = translution("prepare", "imagenet", *(part for pair in arguments.items() for part in pair))
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_other_settings_than_before_are_refused(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "out", **SMALL)
    with pytest.raises(UserError, match="was started with seed=0, now it is 1; choose another folder"):
        prepare(source, tmp_path / "out", **{**SMALL, "seed": 1})
    (source / "n00000000" / "0.JPEG").rename(source / "n00000000" / "new.JPEG")
    with pytest.raises(UserError, match="was started with input_sha256="):
        prepare(source, tmp_path / "out", **SMALL)


def test_a_full_disk_is_one_line_and_a_rerun_resumes(source: Path, tmp_path: Path):
    """A limit on the size of files stands in for a full disk; both take the same path in the code."""
    prepare(source, tmp_path / "whole", **SMALL)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            prepare(source, tmp_path / "out", **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "shard-000000.tar: cannot be written; run the command again to resume: " in str(error.value)
    assert not list((tmp_path / "out").glob("*.tar*"))
    prepare(source, tmp_path / "out", **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_too_little_free_space_is_an_error_at_the_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from trainer.data.images.prepare import prepare as image_prepare

    monkeypatch.setattr(image_prepare.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"needs about 0\.0 GB, but 0\.0 GB are free; free some space"):
        prepare(source, tmp_path / "out", **SMALL)
    assert not list((tmp_path / "out").glob("shard*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 3}, "samples is 3, but its shards hold 20; prepare the data again"),
        ({"format": "other"}, "not a manifest of images: format"),
        ({"shards": "none"}, "not a manifest of images: shards"),
    ],
)
def test_a_damaged_manifest_is_an_error_with_its_path(
    source: Path, tmp_path: Path, change: dict, message: str
):
    prepare(source, tmp_path / "out", workers=0)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path / "out")
    assert message in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json, so its preparation is not finished"):
        read_manifest(tmp_path / "out")
