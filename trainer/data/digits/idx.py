"""The IDX file format of the original MNIST files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from parallel.errors import UserError

_UNSIGNED_BYTE = 0x08


def parse_idx(raw: bytes, ndim: int, name: str) -> np.ndarray:
    """Parse an IDX file of unsigned bytes with `ndim` dimensions (3: images, 1: labels).

    Raises UserError with `name`, what was found and what was expected.
    """
    expected = (_UNSIGNED_BYTE << 8) | ndim
    header = 4 + 4 * ndim
    if len(raw) < header:
        raise UserError(f"{name}: truncated, has {len(raw)} bytes, but its header needs {header}")
    magic = int.from_bytes(raw[:4], "big")
    if magic != expected:
        raise UserError(
            f"{name}: wrong magic number 0x{magic:08x}, expected 0x{expected:08x} "
            f"(IDX file of unsigned bytes with {ndim} dimension{'s' if ndim > 1 else ''})"
        )
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=ndim, offset=4))
    found, wanted = len(raw) - header, int(np.prod(shape, dtype=np.int64))
    if found != wanted:
        size = "×".join(map(str, shape))
        state = "truncated" if found < wanted else "too long"
        raise UserError(f"{name}: {state}, has {found} bytes of data, expected {size} = {wanted}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_idx(folder: Path, name: str, ndim: int) -> np.ndarray:
    """Read `folder/name` or `folder/name.gz`; raises UserError as `parse_idx` does."""
    for path in (folder / name, folder / f"{name}.gz"):
        if not path.is_file():
            continue
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except EOFError:
            raise UserError(f"{path}: truncated, its compressed data ends early") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged or not a gzip file ({error})") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        return parse_idx(raw, ndim, str(path))
    raise UserError(f"data.path={folder}: file {name} (or {name}.gz) is missing")


def to_idx(array: np.ndarray) -> bytes:
    """`array` of uint8 as an IDX file."""
    magic = (_UNSIGNED_BYTE << 8) | array.ndim
    sizes = np.array(array.shape, ">u4").tobytes()
    return magic.to_bytes(4, "big") + sizes + np.ascontiguousarray(array, np.uint8).tobytes()
