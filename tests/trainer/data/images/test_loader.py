"""Training and evaluation from shards: division among ranks, resuming, and damaged data."""

import multiprocessing
import subprocess
import sys
import tarfile
from itertools import islice
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch

from parallel.errors import UserError
from tests.trainer.data.images.image_folders import labels, shards
from trainer.data.images.imagenet import Imagenet, ImagenetConfig
from trainer.data.images.loader import worker_context
from trainer.data.source import Batch
from trainer.metrics import IGNORED

CLASSES = 37  # with one image each
SHAPE = (16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, manifest = shards(tmp_path_factory.mktemp("images"), CLASSES)
    counts = [shard.samples for shard in manifest.shards]
    assert len(counts) >= 9
    assert len(set(counts)) > 1
    assert sum(counts) == CLASSES
    return path


def source(folder: Path, workers: int = 0, shape: tuple[int, int] = SHAPE, **settings: object) -> Imagenet:
    values = {"path": folder, "evaluation_path": None, "workers": workers, "shuffle": 24} | settings
    return Imagenet(ImagenetConfig.model_validate(values), shape, CLASSES, seed=0)


def run(folder: Path, start: int, steps: int, batch: int, world: int, workers: int = 0, accumulate: int = 1):
    """The global batches of some steps, each as the sorted (label, pixels) of all ranks."""
    imagenet = source(folder, workers)
    streams = [imagenet.train_batches(start, batch, accumulate, rank, world) for rank in range(world)]
    whole = []
    for _ in range(steps):
        parts = [next(stream) for _ in range(accumulate) for stream in streams]
        assert {len(part.targets) for part in parts} == {batch // accumulate // world}
        pairs = [
            (int(label), image.numpy().tobytes())
            for part in parts
            for image, label in zip(*part, strict=True)
        ]
        assert len(pairs) == batch
        whole.append(sorted(pairs))
    return whole


def test_two_ranks_of_two_workers_get_disjoint_images_that_make_up_an_epoch(folder: Path):
    seen = [labels(islice(source(folder, 2).train_batches(0, 2, 1, rank, 2), 37)) for rank in range(2)]
    # 37 is odd, so the first rank gets 19 images of the first epoch and 18 of the second.
    epochs = [seen[0][:19] + seen[1][:18], seen[0][19:] + seen[1][18:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(CLASSES))] * 2
    assert epochs[0] != epochs[1]


def test_shards_are_divided_among_ranks(folder: Path):
    """With half as many ranks as lanes, no rank reads from another one's lanes."""
    order = source(folder).order
    assert order.lanes == 8
    lines = [
        np.sort(np.concatenate([order.lane_samples(0, lane, 0, rank, 4).line for lane in range(8)]))
        for rank in range(4)
    ]
    runs = [int((np.diff(line) > 1).sum()) + 1 for line in lines]
    assert max(runs) <= 2  # each reads two contiguous parts of the line of shards


@pytest.mark.parametrize(
    ("world", "workers", "accumulate"), [(1, 0, 3), (2, 2, 1), (2, 1, 3), (3, 0, 1), (4, 2, 1), (6, 0, 2)]
)
def test_every_world_size_gets_the_same_global_batches(
    folder: Path, world: int, workers: int, accumulate: int
):
    batch = 12
    expected = run(folder, 0, 5, batch, 1)
    assert run(folder, 0, 5, batch, world, workers, accumulate) == expected


@pytest.mark.parametrize(("stop", "world", "workers"), [(1, 2, 2), (3, 1, 0), (5, 4, 1)])
def test_a_resumed_run_gets_the_next_images(folder: Path, stop: int, world: int, workers: int):
    """After a stop in the first epoch, at its end and in the second one; with other numbers of ranks."""
    whole = run(folder, 0, 8, 12, 2, 2)
    assert run(folder, 12 * stop, 8 - stop, 12, world, workers) == whole[stop:]


def test_a_resumed_run_with_another_batch_size_keeps_the_order(folder: Path):
    sixes, tens = run(folder, 0, 8, 6, 1), run(folder, 18, 3, 10, 2)
    assert sorted(pair for step in sixes[3:] for pair in step) == sorted(
        pair for step in tens for pair in step
    )


def test_resuming_does_not_read_shards_before_the_position(folder: Path, tmp_path: Path):
    """They may even have lost their content."""
    imagenet = source(folder, shuffle=1, lanes=2)
    start = imagenet.order.samples // 2 // imagenet.order.lanes * imagenet.order.lanes
    needed = {
        int(s)
        for lane in range(imagenet.order.lanes)
        for s in imagenet.order.lane_samples(0, lane, start, 0, 1).shard
    }
    assert len(needed) < len(imagenet.images.paths)
    expected = labels(islice(imagenet.train_batches(start, 1), imagenet.order.samples - start))
    copy = copytree(folder, tmp_path / "copy")
    moved = source(copy, shuffle=1, lanes=2)
    for number, path in enumerate(moved.images.paths):
        if number not in needed:
            path.write_bytes(b"")
    assert labels(islice(moved.train_batches(start, 1), imagenet.order.samples - start)) == expected


def test_an_image_is_cropped_differently_in_every_epoch(folder: Path):
    [first], [second] = (run(folder, epoch * CLASSES, 1, CLASSES, 1) for epoch in (0, 1))
    same = [one == other for one, other in zip(first, second, strict=True)]
    assert sum(same) <= 1


def test_loading_does_not_change_the_global_random_state(folder: Path):
    """Dropout uses it."""
    state = torch.get_rng_state()
    next(source(folder, 1).train_batches(0, 4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("world", "workers", "batch"), [(1, 0, 100), (1, 2, 5), (2, 2, 4), (3, 0, 7), (5, 1, 2)]
)
def test_evaluation_has_every_image_once_in_equal_batches_on_all_ranks(
    folder: Path, tmp_path: Path, world: int, workers: int, batch: int
):
    train = copytree(folder, tmp_path / "train")
    imagenet = source(train, workers, evaluation_path=folder)
    ranks = [list(imagenet.evaluation_batches("validation", batch, rank, world)) for rank in range(world)]
    sizes = [[len(one.targets) for one in batches] for batches in ranks]
    assert all(each == sizes[0] for each in sizes)
    assert max(sizes[0]) <= batch
    seen = [label for batches in ranks for label in labels(batches) if label != IGNORED]
    assert sorted(seen) == list(range(CLASSES))


@pytest.mark.parametrize("workers", [0, 1])
def test_rectangular_images_are_height_by_width_in_training_and_evaluation(
    folder: Path, tmp_path: Path, workers: int
):
    train = copytree(folder, tmp_path / "train")
    imagenet = source(train, workers, (24, 40), evaluation_path=folder)
    batches = {
        True: next(imagenet.train_batches(0, 6)),
        False: next(imagenet.evaluation_batches("validation", 6)),
    }
    for training, batch in batches.items():
        assert batch.inputs.shape == (6, 24, 40, 3)
        ready = imagenet.on_device(batch, training)
        assert ready.inputs.shape == (6, 3, 24, 40)
        assert ready.inputs.isfinite().all()


def damaged(folder: Path, copy: Path, old: bytes, new: bytes) -> Path:
    """A copy of the shards in which the first JPEG's bytes `old` are `new`."""
    copytree(folder, copy)
    for path in sorted(copy.glob("*.tar")):
        content = path.read_bytes()
        if old in content:
            path.write_bytes(content.replace(old, new, 1))
            return copy
    raise AssertionError("nothing to damage")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_counted_logged_and_skipped(
    folder: Path, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
):
    bad = source(damaged(folder, tmp_path / "bad", b"\xff\xd8\xff\xe0", b"\0\0\0\0"), workers)
    batch = next(bad.train_batches(0, CLASSES))
    assert batch.targets.tolist().count(IGNORED) == 1
    assert len(set(batch.targets.tolist())) == CLASSES
    assert batch.inputs[batch.targets == IGNORED].sum() == 0
    [record] = caplog.records
    assert "skipped shard-" in record.message
    assert "(1 in this run)" in record.message
    ready = bad.on_device(Batch(batch.inputs, batch.targets), training=True)
    assert ready.targets.sum() == pytest.approx(CLASSES - 1, abs=1e-3)  # the loss ignores it
    good = next(source(folder).train_batches(0, CLASSES)).targets
    assert (good != batch.targets).sum() == 1  # all others stay in place


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_truncated_during_training_is_an_error_with_its_path(
    folder: Path, tmp_path: Path, workers: int
):
    copy = copytree(folder, tmp_path / "copy")
    imagenet = source(copy, workers)
    victim = imagenet.images.paths[3]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    others = set(multiprocessing.active_children())
    with pytest.raises(UserError) as error:
        list(islice(imagenet.train_batches(0, 4), 12))
    assert str(error.value).startswith(f"{victim}: truncated")
    assert "\n" not in str(error.value)
    assert not set(multiprocessing.active_children()) - others  # even while the traceback is alive


def test_a_shard_that_ends_early_between_two_members_is_an_error_with_its_path(folder: Path, tmp_path: Path):
    copy = copytree(folder, tmp_path / "copy")
    imagenet = source(copy)
    victim = imagenet.images.paths[0]
    with tarfile.open(victim) as tar:
        second = tar.getmembers()[2].offset
    victim.write_bytes(victim.read_bytes()[:second])
    with pytest.raises(UserError, match=r"shard-000000\.tar: truncated: 1 samples"):
        list(islice(imagenet.train_batches(0, 4), 12))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "this shard of manifest.json is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), "truncated: has"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "too long: has"),
    ],
    ids=["missing", "truncated", "longer"],
)
def test_shards_that_do_not_match_the_manifest_are_refused_before_training(
    folder: Path, tmp_path: Path, damage, message: str
):
    copy = copytree(folder, tmp_path / "copy")
    damage(copy / "shard-000002.tar")
    with pytest.raises(UserError) as error:
        source(copy)
    assert f"data.path={copy / 'shard-000002.tar'}: {message}" in str(error.value)


def test_too_few_shards_says_how_many_are_needed(folder: Path):
    imagenet = source(folder, workers=3)
    have = len(imagenet.images.paths)
    with pytest.raises(UserError, match=rf"{have} shards are too few .* at least 12 shards are needed"):
        next(imagenet.train_batches(0, 8, 1, 0, 4))


def test_a_program_that_exits_while_loading_leaves_no_process(folder: Path):
    """Its workers ignore SIGTERM, so Python's exit would wait for them forever."""
    code = (
        "import sys; from pathlib import Path; from trainer.data.images.imagenet import *; "
        "config = ImagenetConfig(path=Path(sys.argv[1]), workers=2); "
        f"source = Imagenet(config, (16, 16), {CLASSES}, 0); "
        "kept = source.train_batches(0, 4); next(kept); print('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60
    )  # the pipes end with the last process that has them open
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_on_cuda_workers_are_not_forked_from_the_training_process_and_give_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = run(folder, 4, 3, 6, 1)
    held = source(folder, workers=2, evaluation_path=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker_context().get_start_method() == "forkserver"
    assert run(folder, 4, 3, 6, 1, workers=2) == expected
    stream = held.train_batches(0, 4)
    next(stream)
    started = multiprocessing.active_children()
    assert len(started) == 2
    assert all(type(each).__name__ == "ForkServerProcess" for each in started)
    stream.close()
