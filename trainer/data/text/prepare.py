"""From folders of documents to shards of tokens with a manifest: `translution prepare openwebtext`.

One process reads, others encode, the first one writes, in the order of the documents. What is on
the disk at a moment is described by progress.json, so that a run after a kill goes on from there;
its result has the same bytes as that of an undisturbed run, whatever the number of processes.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from parallel.errors import UserError
from trainer.data.prepare.output_folder import MANIFEST, check_same_settings, only_writer, write_json
from trainer.data.text.documents import InputFile, Skip, find_files, read_documents
from trainer.data.text.encode import encode_all
from trainer.data.text.manifest import Manifest, Split, check_shards, read_manifest
from trainer.data.text.shards import ShardWriter
from trainer.data.text.tokenizer import describe, load_ranks
from trainer.errors import machine_error
from trainer.reporting.progress import Progress

PROGRESS = "progress.json"
_CHUNK_CHARACTERS = 1 << 20
_CHUNK_DOCUMENTS = 512
_REPORTED_SKIPS = 5


class Position(NamedTuple):
    """Everything before document `number` of file `file` is encoded; `read` bytes of all files."""

    file: int
    number: int
    read: int
    skipped: Counter[str]


class _State(BaseModel):
    """progress.json."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, int | float | str]
    file: int = 0
    number: int = 0
    read: int = 0
    skipped: dict[str, int] = {}
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
) -> Manifest:
    """Encode the documents of `source` into shards in `out`, or go on with what was begun there.

    `workers` processes encode (0: this one); progress is saved every `save_seconds`. Raises
    UserError for input that is missing or has no usable document, for an `out` that holds
    something else, and when the disk is full; then the same call goes on.
    """
    files = find_files(source)
    ranks = load_ranks(bpe)
    tokenizer = describe(ranks)
    settings: dict[str, int | float | str] = {
        "input_files": len(files),
        "input_bytes": sum(file.size for file in files),
        "input_sha256": _listing(files),
        "tokenizer_sha256": tokenizer.sha256,
        "shard_tokens": shard_tokens,
        "validation_share": validation_share,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if done := _finished(out, settings):
            return done
        with only_writer(out):
            state = _resumed(out, settings)
            writers = {
                name: ShardWriter(out, name, shard_tokens, getattr(state, name))
                for name in ("train", "validation")
            }
            try:
                _run(files, out, state, writers, ranks, validation_share, workers, save_seconds)
            finally:
                for writer in writers.values():
                    writer.close()
            _check_any(source, state)
            manifest = Manifest(
                tokenizer=tokenizer,
                settings=settings,
                skipped=dict(sorted(state.skipped.items())),
                train=state.train,
                validation=state.validation,
            )
            write_json(out / MANIFEST, manifest.model_dump())
            (out / PROGRESS).unlink()
    except OSError as error:
        where = error.filename or out
        raise machine_error(error, where, "be written; run the command again to go on") from None
    return manifest


def _run(
    files: list[InputFile],
    out: Path,
    state: _State,
    writers: dict[str, ShardWriter],
    ranks: dict[bytes, int],
    share: float,
    workers: int,
    save_seconds: float,
) -> None:
    """Encode and write everything after `state`, which is kept up to date and saved."""

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
        for encoded, position in encode_all(chunks, ranks, share, workers):
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
    """Texts that are encoded together, and the position after them."""
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


def _listing(files: list[InputFile]) -> str:
    """Names and sizes of the input, as one checksum."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.size}\n".encode())
    return digest.hexdigest()


def _finished(out: Path, settings: dict[str, int | float | str]) -> Manifest | None:
    """The manifest of an earlier run to the end."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    check_same_settings(out, manifest.settings, settings)
    for split in (manifest.train, manifest.validation):
        check_shards(out, split, "size")
    return manifest


def _resumed(out: Path, settings: dict[str, int | float | str]) -> _State:
    """Where an earlier run was; raises UserError where `out` holds anything else."""
    path = out / PROGRESS
    if not path.exists():
        strange = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
        if strange:
            raise UserError(f"--out {out}: is not empty (holds {strange[0]}); name another folder")
        return _State(settings=settings)
    try:
        state = _State.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path}: is damaged; delete {out} to start over") from None
    if not state.train.documents + state.validation.documents:
        return _State(settings=settings)
    check_same_settings(out, state.settings, settings)
    return state


def _check_any(source: Path, state: _State) -> None:
    if state.train.documents + state.validation.documents == 0:
        why = ", ".join(f"{count:,} {reason}" for reason, count in state.skipped.items())
        raise UserError(f"--input {source}: holds no usable document: skipped {why}")


def summary(manifest: Manifest) -> str:
    """What became of the documents, in one or two lines."""
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
                f"warning: the {name} split is empty; a net needs both: give more documents, or another "
                f"--validation-share than {share}"
            )
    return "\n".join(lines)
