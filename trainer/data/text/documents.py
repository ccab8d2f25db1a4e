"""The documents in a folder of text files, in an order that depends only on the files."""

import gzip
import importlib.util
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from parallel.errors import UserError
from trainer.data.text.tokenizer import SEPARATOR
from trainer.errors import machine_error

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet", ".arrow")
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class InputFile(NamedTuple):
    """A file of documents; `name` is its path below the input folder, `size` in bytes."""

    path: Path
    name: str
    size: int


class Skip(NamedTuple):
    """Replaces the text of an unusable document."""

    reason: str


class Document(NamedTuple):
    """Document `number` of its file; `read` is the number of bytes of the file read so far."""

    number: int
    text: str | Skip
    read: int


def find_files(source: Path) -> list[InputFile]:
    """The files of `source`, a folder (searched recursively) or one file, sorted by name.

    Raises UserError if there are none, or if a library to read them is missing.
    """
    if not source.exists():
        raise UserError(f"--input {source}: no such file or folder")
    paths = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    root = source.parent if source.is_file() else source
    named = [(path.relative_to(root).as_posix(), path) for path in paths if _holds_documents(path)]
    if not named:
        raise UserError(f"--input {source}: has no files of documents: {', '.join(SUFFIXES)}")
    for suffix, library in ((".parquet", "pyarrow"), (".arrow", "datasets")):
        example = next((path for _, path in named if path.name.endswith(suffix)), None)
        if example and importlib.util.find_spec(library) is None:
            raise UserError(f"{example}: reading {suffix} files needs {library}: pip install {library}")
    return [InputFile(path, name, path.stat().st_size) for name, path in sorted(named)]


def _holds_documents(path: Path) -> bool:
    # Hugging Face stores index mappings next to the data as cache-….arrow.
    return path.name.endswith(SUFFIXES) and not path.name.startswith((".", "cache-"))


def read_documents(file: InputFile, first: int = 0) -> Iterator[Document]:
    """The documents of a file from number `first` on.

    Unusable documents have a Skip as their text; a damaged file ends with one. Raises UserError when
    the file cannot be opened or has no text column.
    """
    try:
        if file.path.name.endswith((".txt", ".txt.gz")):
            found = _read_text(file)
        elif file.path.name.endswith((".jsonl", ".jsonl.gz")):
            found = _read_json_lines(file, first)
        elif file.path.name.endswith(".parquet"):
            found = _read_parquet(file)
        else:
            found = _read_arrow(file)
        for number, (text, read) in enumerate(found):
            if number >= first:
                yield Document(number, _check_text(text), read)
    except OSError as error:
        raise machine_error(error, file.path, "be read") from None


def _check_text(text: str | Skip) -> str | Skip:
    if isinstance(text, Skip):
        return text
    if not text.strip():
        return Skip("empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can contain half a surrogate pair
        return Skip("not UTF-8")
    return text


def _open(file: InputFile) -> tuple[BinaryIO, BinaryIO]:
    """The file on the disk, and its uncompressed content."""
    raw = file.path.open("rb")
    return raw, gzip.GzipFile(fileobj=raw) if file.path.name.endswith(".gz") else raw  # pyright: ignore


def _read_text(file: InputFile) -> Iterator[tuple[str | Skip, int]]:
    """One document, or several separated by <|endoftext|>."""
    raw, unpacked = _open(file)
    with raw:
        try:
            text = unpacked.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            yield Skip("not UTF-8"), file.size
        except _DAMAGED:
            yield Skip("damaged file"), file.size
        else:
            for document in text.split(SEPARATOR):
                yield document, file.size


def _read_json_lines(file: InputFile, first: int) -> Iterator[tuple[str | Skip, int]]:
    """One JSON object per line; lines before `first` are not parsed."""
    raw, unpacked = _open(file)
    with raw:
        try:
            for number, line in enumerate(unpacked):
                yield (_json_text(line) if number >= first else ""), raw.tell()
        except _DAMAGED:
            yield Skip("damaged file"), file.size


def _json_text(line: bytes) -> str | Skip:
    if not line.strip():
        return Skip("empty")
    try:
        values = json.loads(line.decode("utf-8-sig"))  # -sig: a file may start with a byte order mark
    except UnicodeDecodeError:
        return Skip("not UTF-8")
    except (ValueError, RecursionError):
        return Skip("not JSON")
    text = values.get("text") if isinstance(values, dict) else None
    return text if isinstance(text, str) else Skip("no field text")


def _read_parquet(file: InputFile) -> Iterator[tuple[str | Skip, int]]:
    import pyarrow  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet  # pyright: ignore[reportMissingImports]

    try:
        table = pyarrow.parquet.ParquetFile(file.path)
        _check_columns(file, table.schema_arrow.names)
        rows = 0
        for batch in table.iter_batches(1024, columns=["text"]):
            rows += len(batch)
            read = file.size * rows // max(table.metadata.num_rows, 1)
            yield from _column(batch.column(0).to_pylist(), read)
    except pyarrow.ArrowException:
        yield Skip("damaged file"), file.size


def _read_arrow(file: InputFile) -> Iterator[tuple[str | Skip, int]]:
    import datasets  # pyright: ignore[reportMissingImports]
    import pyarrow  # pyright: ignore[reportMissingImports]

    try:
        table = datasets.Dataset.from_file(str(file.path))
        _check_columns(file, table.column_names)
        for start in range(0, len(table), 1024):
            texts = table[start : start + 1024]["text"]
            yield from _column(texts, file.size * (start + len(texts)) // len(table))
    except pyarrow.ArrowException:
        yield Skip("damaged file"), file.size


def _column(texts: Iterable[object], read: int) -> Iterator[tuple[str | Skip, int]]:
    for text in texts:
        yield (text if isinstance(text, str) else Skip("no field text")), read


def _check_columns(file: InputFile, columns: list[str]) -> None:
    if "text" not in columns:
        raise UserError(f"{file.path}: has no column text; its columns are {', '.join(columns)}")
