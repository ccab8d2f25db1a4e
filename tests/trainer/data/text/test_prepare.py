"""`translution prepare openwebtext`: tokens, skipped documents, resuming, and errors."""

import fcntl
import gzip
import importlib.util
import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parallel.errors import UserError
from trainer.data.text import prepare as text_prepare
from trainer.data.text.documents import Skip, find_files, read_documents
from trainer.data.text.encode import in_validation
from trainer.data.text.manifest import TextManifest, check_shards, read_manifest
from trainer.data.text.prepare import prepare
from trainer.data.text.shards import ShardTokens
from trainer.data.text.tokenizer import build_encoding, describe, load_ranks

ASSETS = Path(__file__).parents[3] / "assets"
BPE = ASSETS / "gpt2_excerpt.tiktoken"
SPEECHES = [json.loads(line)["text"] for line in (ASSETS / "state_of_the_union.jsonl").open()]
SHARE = 0.25


@pytest.fixture
def speeches(tmp_path: Path) -> Path:
    """24 speeches in files of every plain kind."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(SPEECHES[0])
    with gzip.open(folder / "b.txt.gz", "wt") as file:
        file.write("<|endoftext|>".join(SPEECHES[1:4]))
    lines = [json.dumps({"text": text, "url": "…"}) + "\n" for text in SPEECHES]
    (folder / "c.jsonl").write_text("".join(lines[4:14]))
    with gzip.open(folder / "deep" / "d.jsonl.gz", "wt") as file:
        file.writelines(lines[14:])
    return folder


def run(source: Path, out: Path, **options) -> TextManifest:
    defaults = {"bpe": BPE, "workers": 0, "shard_tokens": 700, "validation_share": SHARE}
    return prepare(source, out, **{**defaults, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(folder: Path, split: str) -> list[str]:
    """The documents in a split of a prepared folder."""
    manifest = read_manifest(folder)
    check_shards(folder, getattr(manifest, split), "checksum")
    tokens = ShardTokens(folder, getattr(manifest, split), manifest.tokenizer.vocabulary)
    ids = tokens.windows([0], len(tokens))[0].tolist()
    text = build_encoding(load_ranks(BPE)).decode(ids)
    assert text.endswith("<|endoftext|>")
    return text.split("<|endoftext|>")[:-1]


def test_the_encoding_is_gpt2s():
    ranks = load_ranks(BPE)
    assert build_encoding(ranks).encode_ordinary("Hello world") == [15496, 995]
    assert describe(ranks).separator == 50256
    assert describe(ranks).vocabulary == 50257


def test_every_document_is_in_the_split_of_its_hash_and_in_order(speeches: Path, tmp_path: Path):
    manifest = run(speeches, tmp_path / "out")
    for split in ("train", "validation"):
        wanted = [text for text in SPEECHES if in_validation(text, SHARE) == (split == "validation")]
        assert decoded(tmp_path / "out", split) == wanted
        assert getattr(manifest, split).documents == len(wanted) > 0
    assert len(manifest.train.shards) > 3
    assert {shard.tokens for shard in manifest.train.shards[:-1]} == {700}


def test_a_separator_inside_a_json_document_is_plain_text(tmp_path: Path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "a<|endoftext|>b"}))
    run(tmp_path / "one.jsonl", tmp_path / "out", validation_share=0.0)
    ids = np.fromfile(tmp_path / "out" / "train-00000.bin", "<u2")
    assert (ids == 50256).sum() == 1


def test_the_result_does_not_depend_on_the_number_of_processes(speeches: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(text_prepare, "_CHUNK_DOCUMENTS", 2)
    for workers in (0, 2):
        run(speeches, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


class Killed(BaseException):
    """Stands in for SIGKILL: no code catches it."""


@pytest.mark.parametrize("save_seconds", [0, 1e9])
@pytest.mark.parametrize("chunks", [1, 4, 8])
def test_a_rerun_after_a_kill_resumes_and_gives_the_same_bytes(
    speeches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int, save_seconds: float
):
    (speeches / "bad.jsonl").write_text('{"text": ""}\nnonsense\n')
    run(speeches, tmp_path / "whole")
    monkeypatch.setattr(text_prepare, "_CHUNK_DOCUMENTS", 2)
    real, encoded = text_prepare.map_in_processes, 0

    def killed_after(*arguments):
        for number, result in enumerate(real(*arguments)):
            if number == chunks:
                raise Killed
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(text_prepare, "map_in_processes", killed_after)
        with pytest.raises(Killed):
            run(speeches, tmp_path / "out", save_seconds=save_seconds)
    assert not (tmp_path / "out" / "manifest.json").exists()

    def counting(*arguments):
        nonlocal encoded
        for result in real(*arguments):
            encoded += result[0].train_documents + result[0].validation_documents
            yield result

    monkeypatch.setattr(text_prepare, "map_in_processes", counting)
    run(speeches, tmp_path / "out")
    assert encoded == (24 if save_seconds else 24 - 2 * chunks)  # saved documents are not encoded again
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_the_rerun_resumes(speeches: Path, tmp_path: Path):
    run(speeches, tmp_path / "whole", shard_tokens=4000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))  # limits files instead of the disk
    try:
        with pytest.raises(UserError, match=r"out.*: cannot be written; run the command again to resume: "):
            run(speeches, tmp_path / "out", shard_tokens=4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run(speeches, tmp_path / "out", shard_tokens=4000)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_rerun_of_a_finished_preparation_changes_nothing(speeches: Path, tmp_path: Path):
    first = run(speeches, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert run(speeches, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_unusable_documents_are_counted_and_the_others_encoded(speeches: Path, tmp_path: Path, capsys):
    (speeches / "e.txt").write_bytes("naïve".encode("latin-1"))
    (speeches / "f.txt").write_text("  \n")
    lines = [b'{"text": "caf\xe9"}', b"{", b"", b'{"body": "x"}', b'["text"]', b'{"text": "\\ud800"}']
    (speeches / "g.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    torn = gzip.compress(b"".join(json.dumps({"text": f"{n}" * 50}).encode() + b"\n" for n in range(999)))
    (speeches / "h.jsonl.gz").write_bytes(torn[: len(torn) // 2])
    (speeches / "i.txt.gz").write_bytes(b"this is not gzip")
    (speeches / "readme.md").write_text("not a document")
    manifest = run(speeches, tmp_path / "out")
    assert manifest.skipped == {
        "damaged file": 2,
        "empty": 2,
        "no field text": 2,
        "not JSON": 1,
        "not UTF-8": 3,
    }
    found = decoded(tmp_path / "out", "train") + decoded(tmp_path / "out", "validation")
    assert set(SPEECHES) < set(found)
    assert f"skipped: {speeches / 'g.jsonl'}, document 2: not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere"}, "--input .*nowhere: no such file or folder"),
        ({"source": "empty"}, r"--input .*empty: has no files of documents: .txt, .txt.gz, .jsonl"),
        ({"source": "blank"}, r"--input .*blank: has no usable document: skipped 1 empty"),
        ({"bpe": "nowhere"}, "--bpe .*nowhere: no such file"),
        ({"bpe": "in/a.txt"}, "--bpe .*a.txt: line 1 is not `BASE64 ID` as in a tiktoken file"),
        (
            {"bpe": "few"},
            "--bpe .*few: is not a complete tiktoken file: 255 of the 256 single bytes are missing",
        ),
        ({"out": "in"}, r"--out .*in: is not empty \(holds a.txt\); choose another folder"),
        ({"shard_tokens": 600}, "--out .*done: was started with shard_tokens=700, now it is 600"),
        ({"out": "in/a.txt"}, r"a.txt: cannot be written"),
    ],
)
def test_a_mistake_is_one_line(speeches: Path, tmp_path: Path, options: dict, message: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "x.txt").write_text(" ")
    (tmp_path / "few").write_text("IQ== 0\n")
    run(speeches, tmp_path / "done")
    paths = {"source": "in", "out": "done", "bpe": BPE} | options
    paths |= {key: tmp_path / paths[key] for key in ("source", "out", "bpe")}
    if options.get("source") == "blank":
        paths["out"] = tmp_path / "fresh"
    with pytest.raises(UserError, match=message) as error:
        run(**paths)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_an_error(speeches: Path, tmp_path: Path):
    run(speeches, tmp_path / "out")
    (tmp_path / "out" / "train-00001.bin").unlink()
    with pytest.raises(UserError, match=r"train-00001.bin: this shard of manifest.json is missing"):
        run(speeches, tmp_path / "out")


def test_two_commands_cannot_write_to_the_same_folder(speeches: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"--out .*: another prepare command is writing here"):
            run(speeches, out)
    run(speeches, out)


@pytest.mark.parametrize(("name", "library"), [("a.parquet", "pyarrow"), ("a.arrow", "datasets")])
def test_a_missing_library_is_an_error_with_its_name(tmp_path: Path, monkeypatch, name: str, library: str):
    (tmp_path / name).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(UserError, match=f"{name}: reading {name[1:]} files needs {library}: pip install"):
        find_files(tmp_path)


@pytest.mark.parametrize(("suffix", "library"), [(".parquet", "pyarrow.parquet"), (".arrow", "datasets")])
def test_text_columns_are_read_if_their_library_is_installed(tmp_path: Path, suffix: str, library: str):
    pytest.importorskip(library)
    arrow = pytest.importorskip("pyarrow")
    path, table = tmp_path / f"x{suffix}", arrow.table({"text": ["one", None, "three"], "id": [1, 2, 3]})
    if suffix == ".parquet":
        arrow.parquet.write_table(table, path)
    else:
        with path.open("wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (file,) = find_files(path)
    assert [each.text for each in read_documents(file)] == ["one", Skip("no field text"), "three"]
    assert [each.number for each in read_documents(file, 2)] == [2]


def test_the_command_prints_a_summary(speeches: Path, tmp_path: Path, translution: Callable):
    arguments = ["prepare", "openwebtext", "--input", speeches, "--bpe", BPE, "--workers", 0]
    outcome = translution(*arguments, "--out", tmp_path / "out", "--validation-share", 0)
    assert outcome.code == 0, outcome.err
    assert "of 24 documents in 1 shards; validation 0 tokens" in outcome.out
    assert "warning: the validation split is empty" in outcome.out
    outcome = translution(*arguments, "--out", speeches)
    assert outcome.code == 2
    assert outcome.err.startswith("error: --out ")
    assert outcome.err.count("\n") == 1
