"""From folders of documents to shards of tokens with a manifest: `translution prepare openwebtext`.

The main process reads documents and writes tokens in document order; worker processes encode.
progress.json describes what is on the disk, so the next command resumes after a kill. The result has
the same bytes for any number of processes and interruptions.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from parallel.errors import UserError
from trainer.data.prepare.output_folder import (
    MANIFEST,
    WRITE_AGAIN,
    Record,
    check_no_other_files,
    check_same_settings,
    write_json,
    writer_lock,
)
from trainer.data.prepare.pool import map_in_processes
from trainer.data.text.documents import InputFile, Skip, find_files, read_documents
from trainer.data.text.encode import Encoder
from trainer.data.text.manifest import Split, TextManifest, check_shards, read_manifest
from trainer.data.text.shards import ShardWriter
from trainer.data.text.tokenizer import build_encoding, describe, load_ranks
from trainer.errors import machine_error
from trainer.reporting.progress import Progress

PROGRESS = "progress.json"
_CHUNK_CHARACTERS = 1 << 20
_CHUNK_DOCUMENTS = 512
_REPORTED_SKIPS = 5


class Position(NamedTuple):
    """A place in the input: document `number` of file `file`, after `read` bytes of all files.

    skipped   number of skipped documents before it, by reason
    """

    file: int
    number: int
    read: int
    skipped: Counter[str]


class _State(Record):
    """progress.json: the next document to encode, and what has been written."""

    settings: dict[str, int | float | str]
    file: int = 0
    number: int = 0
    read: int = 0
    skipped: dict[str, int] = Field(default_factory=dict)
    train: Split = Split(documents=0, tokens=0, shards=[])
    validation: Split = Split(documents=0, tokens=0, shards=[])


def prepare(
    source: Path,
    out: Path,
    bpe: Path | None = None,
    workers: int = 1,
    shard_tokens: int = 100_000_000,
    validation_share: float = 0.0005,
    save_seconds: float = 10.0,
) -> TextManifest:
    """Encode the documents of `source` into shards in `out`; resumes an interrupted call.

    bpe                file of GPT-2's ranks; None: tiktoken's own
    workers            processes that encode; 0: this one
    validation_share   fraction of the documents that goes to the validation split
    save_seconds       time between saves of the progress

    Raises UserError for input that is missing or has no usable document, for an `out` with other
    files, and when the disk is full; repeat the call to resume.
    """
    files = find_files(source)
    ranks = load_ranks(bpe)
    tokenizer = describe(ranks)
    settings: dict[str, int | float | str] = {
        "input_files": len(files),
        "input_bytes": sum(file.size for file in files),
        "input_sha256": _names_and_sizes_sha256(files),
        "tokenizer_sha256": tokenizer.sha256,
        "shard_tokens": shard_tokens,
        "validation_share": validation_share,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if finished := _finished(out, settings):
            return finished
        with writer_lock(out):
            state = _read_progress(out, settings)
            writers = {
                name: ShardWriter(out, name, shard_tokens, getattr(state, name))
                for name in ("train", "validation")
            }
            try:
                encoder = Encoder(build_encoding(ranks), validation_share)
                _encode(files, out, state, writers, encoder, workers, save_seconds)
            finally:
                for writer in writers.values():
                    writer.close()
            _check_not_empty(source, state)
            manifest = TextManifest(
                tokenizer=tokenizer,
                settings=settings,
                skipped=dict(sorted(state.skipped.items())),
                train=state.train,
                validation=state.validation,
            )
            write_json(out / MANIFEST, manifest.model_dump())
            (out / PROGRESS).unlink()
    except OSError as error:
        raise machine_error(error, error.filename or out, WRITE_AGAIN) from None
    return manifest


def _encode(
    files: list[InputFile],
    out: Path,
    state: _State,
    writers: dict[str, ShardWriter],
    encoder: Encoder,
    workers: int,
    save_seconds: float,
) -> None:
    """Encode and write everything after `state`, keeping it up to date in memory and on the disk."""

    def save() -> None:
        for name, writer in writers.items():
            writer.sync()
            setattr(state, name, writer.split)
        write_json(out / PROGRESS, state.model_dump())

    save()
    saved = start = time.monotonic()
    before = sum(writer.tokens for writer in writers.values())
    with Progress(sum(file.size for file in files), state.read) as progress:
        chunks = _chunks(files, state, progress)
        with closing(map_in_processes(encoder, chunks, workers)) as results:
            for encoded, position in results:
                writers["train"].append(encoded.train, encoded.train_documents)
                writers["validation"].append(encoded.validation, encoded.validation_documents)
                state.file, state.number, state.read = position.file, position.number, position.read
                state.skipped = dict(position.skipped)
                now = time.monotonic()
                tokens = sum(writer.tokens for writer in writers.values())
                documents = sum(writer.documents for writer in writers.values())
                rate = (tokens - before) / max(now - start, 1e-3)
                progress.show(
                    state.read, f"{documents:,} documents, {tokens:,} tokens, {rate / 1e6:.2f} M tokens/s"
                )
                if now - saved >= save_seconds:
                    save()
                    saved = now
        save()


def _chunks(
    files: list[InputFile], state: _State, progress: Progress
) -> Iterator[tuple[list[str], Position]]:
    """Texts to encode together, and the position after them."""
    skipped = Counter(state.skipped)
    texts: list[str] = []
    characters = 0
    read_before = sum(file.size for file in files[: state.file])
    for index, file in enumerate(files[state.file :], state.file):
        first = state.number if index == state.file else 0
        for document in read_documents(file, first):
            if isinstance(document.text, Skip):
                skipped[document.text.reason] += 1
                if document.text.reason != "empty" and skipped[document.text.reason] <= _REPORTED_SKIPS:
                    progress.say(
                        f"skipped: {file.path}, document {document.number + 1}: {document.text.reason}"
                    )
                continue
            texts.append(document.text)
            characters += len(document.text)
            if characters >= _CHUNK_CHARACTERS or len(texts) >= _CHUNK_DOCUMENTS:
                read = read_before + document.read
                yield texts, Position(index, document.number + 1, read, skipped.copy())
                texts, characters = [], 0
        read_before += file.size
    yield texts, Position(len(files), 0, read_before, skipped)


def _names_and_sizes_sha256(files: list[InputFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.size}\n".encode())
    return digest.hexdigest()


def _finished(out: Path, settings: dict[str, int | float | str]) -> TextManifest | None:
    """The manifest, if an earlier command finished."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    check_same_settings(out, manifest.settings, settings)
    for split in (manifest.train, manifest.validation):
        check_shards(out, split, "size")
    return manifest


def _read_progress(out: Path, settings: dict[str, int | float | str]) -> _State:
    """Where an earlier command stopped; raises UserError if `out` has other files."""
    path = out / PROGRESS
    if not path.exists():
        check_no_other_files(out)
        return _State(settings=settings)
    try:
        state = _State.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path}: is damaged; delete {out} to start over") from None
    if not state.train.documents + state.validation.documents:
        return _State(settings=settings)
    check_same_settings(out, state.settings, settings)
    return state


def _check_not_empty(source: Path, state: _State) -> None:
    if state.train.documents + state.validation.documents == 0:
        why = ", ".join(f"{count:,} {reason}" for reason, count in state.skipped.items())
        raise UserError(f"--input {source}: has no usable document: skipped {why}")


def summary(manifest: TextManifest) -> str:
    """The result in one line, and a warning line for an empty split."""
    parts = [
        f"{name} {split.tokens:,} tokens of {split.documents:,} documents in {len(split.shards)} shards"
        for name, split in (("train", manifest.train), ("validation", manifest.validation))
    ]
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items())
    lines = ["; ".join(parts) + (f"; skipped: {skipped}" if skipped else "")]
    for name, split in (("train", manifest.train), ("validation", manifest.validation)):
        if not split.tokens:
            share = json.dumps(manifest.settings["validation_share"])
            lines.append(
                f"warning: the {name} split is empty, but training needs both; give more documents or "
                f"change --validation-share={share}"
            )
    return "\n".join(lines)
