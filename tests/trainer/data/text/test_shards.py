"""Shards read as one sequence, resumed writing, and damaged shards."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.errors import UserError
from trainer.data.prepare.output_folder import write_json
from trainer.data.text.manifest import Split, TextManifest, Tokenizer, check_shards, read_manifest
from trainer.data.text.shards import ShardTokens, ShardWriter

EMPTY = Split(documents=0, tokens=0, shards=[])


def write_corpus(
    folder: Path, train: np.ndarray, validation: np.ndarray, shard_tokens: int = 10
) -> TextManifest:
    """Write a prepared corpus of these tokens; the separator is 0, the vocabulary 100."""
    splits = {}
    for name, ids in (("train", train), ("validation", validation)):
        writer = ShardWriter(folder, name, shard_tokens, EMPTY)
        writer.append(ids.astype(np.uint16), 1)
        writer.sync()
        splits[name] = writer.split
        writer.close()
    tokenizer = Tokenizer(name="gpt2", vocabulary=100, separator=0, sha256="")
    manifest = TextManifest(tokenizer=tokenizer, settings={}, skipped={}, **splits)
    write_json(folder / "manifest.json", manifest.model_dump())
    return manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path, np.arange(34), np.arange(5))
    return tmp_path


@settings(deadline=None, max_examples=40)
@given(
    parts=st.lists(st.lists(st.integers(0, 99), max_size=25), max_size=6),
    shard_tokens=st.integers(1, 12),
    data=st.data(),
)
def test_windows_are_what_was_appended_for_any_length_of_shards(tmp_path_factory, parts, shard_tokens, data):
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, "train", shard_tokens, EMPTY)
    for part in parts:
        writer.append(np.array(part, np.uint16), 1)
    writer.sync()
    check_shards(folder, writer.split, "checksum")
    whole = np.array([token for part in parts for token in part])
    tokens = ShardTokens(folder, writer.split, 100)
    assert len(tokens) == len(whole) == writer.tokens
    assert all(shard.tokens == shard_tokens for shard in writer.split.shards[:-1])
    length = data.draw(st.integers(0, len(whole)))
    starts = data.draw(st.lists(st.integers(0, len(whole) - length), min_size=1, max_size=4))
    if length:
        tokens.prefetch(starts, length)
    assert tokens.windows(starts, length).tolist() == [whole[s : s + length].tolist() for s in starts]


def test_a_writer_resumes_from_any_earlier_split(tmp_path: Path):
    """It deletes what was written after that."""
    ids = np.arange(47, dtype=np.uint16)
    for saved in (0, 7, 10, 13, 40):
        folder = tmp_path / str(saved)
        folder.mkdir()
        first = ShardWriter(folder, "train", 10, EMPTY)
        first.append(ids[:saved], 1)
        first.sync()
        split = first.split
        first.append(ids[::-1][:33], 3)
        first.sync()
        first.close()
        second = ShardWriter(folder, "train", 10, split)
        second.append(ids[saved:], 1)
        second.sync()
        check_shards(folder, second.split, "checksum")
        assert sorted(path.name for path in folder.iterdir()) == [s.file for s in second.split.shards]
        assert ShardTokens(folder, second.split, 100).windows([0], 47).tolist() == [ids.tolist()]
        assert (second.split.documents, second.split.tokens) == (2, 47)


def test_a_writer_refuses_to_resume_from_a_changed_shard(tmp_path: Path):
    writer = ShardWriter(tmp_path, "train", 10, EMPTY)
    writer.append(np.arange(5, dtype=np.uint16), 1)
    writer.sync()
    (tmp_path / "train-00000.bin").write_bytes(b"other text")
    with pytest.raises(UserError, match=r"train-00000.bin: has changed since it was written; delete"):
        ShardWriter(tmp_path, "train", 10, writer.split)


def damage(folder: Path, what: str) -> None:
    shard, manifest = folder / "train-00001.bin", folder / "manifest.json"
    if what == "missing":
        shard.unlink()
    elif what == "short":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif what == "changed":
        shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    elif what == "unprepared":
        manifest.unlink()
    elif what == "other":
        manifest.write_text('{"format": "translution-text-1"}')
    elif what == "torn":
        manifest.write_text(manifest.read_text()[:50])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "train-00001.bin: this shard of manifest.json is missing"),
        ("short", "train-00001.bin: truncated: has 19 bytes, manifest.json says 20"),
        ("changed", "train-00001.bin: SHA-256 is "),
        ("unprepared", "has no manifest.json, so its preparation is not finished"),
        ("other", "manifest.json: not a manifest of text: tokenizer"),
        ("torn", "manifest.json: not a manifest of text: "),
    ],
)
def test_a_damaged_corpus_is_a_one_line_error(folder: Path, what: str, message: str):
    check_shards(folder, read_manifest(folder).train, "checksum")
    damage(folder, what)
    with pytest.raises(UserError) as error:
        check_shards(folder, read_manifest(folder).train, "checksum")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_an_error_with_the_command_that_makes_it(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder; make it with: translution prepare openwebtext"):
        read_manifest(tmp_path / "nowhere")


def test_a_token_outside_the_vocabulary_is_an_error_with_shard_and_position(folder: Path):
    tokens = ShardTokens(folder, read_manifest(folder).train, vocabulary=30)
    assert tokens.windows([20], 10).max() == 29
    with pytest.raises(UserError, match=r"train-00003.bin: token 30 at 0 is outside the vocabulary of 30"):
        tokens.windows([0, 25], 8)
