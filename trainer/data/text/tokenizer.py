"""GPT-2's byte-pair encoding, from a local file of ranks or from tiktoken."""

import base64
import binascii
import hashlib
from pathlib import Path

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from parallel.errors import UserError
from trainer.data.text.manifest import Tokenizer
from trainer.errors import machine_error

SEPARATOR = "<|endoftext|>"


def load_ranks(bpe: Path | None) -> dict[bytes, int]:
    """Token bytes → id, from lines `BASE64 ID` of the file `bpe`; None: from tiktoken, which may download.

    Raises UserError for a file that is missing or has another format, and when the download fails.
    """
    if bpe is None:
        return _downloaded()
    try:
        lines = bpe.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"--bpe {bpe}: no such file") from None
    except OSError as error:
        raise machine_error(error, f"--bpe {bpe}", "be read") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"--bpe {bpe}: line {number} is not `BASE64 ID` as in a tiktoken file") from None
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing or len(set(ranks.values())) < len(ranks):
        why = f"{missing} of the 256 single bytes are missing" if missing else "two tokens have the same id"
        raise UserError(f"--bpe {bpe}: is not a complete tiktoken file: {why}")
    return ranks


def _downloaded() -> dict[bytes, int]:
    try:
        return tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:  # from requests, which is not our dependency
        raise UserError(
            f"GPT-2's BPE cannot be downloaded ({type(error).__name__}); on a machine without internet "
            "pass a local file of ranks: --bpe gpt2.tiktoken"
        ) from None


def describe(ranks: dict[bytes, int]) -> Tokenizer:
    """The manifest's entry for these ranks; the separator's id follows the last rank."""
    separator = max(ranks.values()) + 1
    if separator > 0xFFFF:
        raise UserError(f"--bpe: ids go up to {separator:,}, but shards store 16 bits, at most 65,535")
    digest = hashlib.sha256()
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        digest.update(base64.b64encode(token) + b" %d\n" % rank)
    return Tokenizer(name="gpt2", vocabulary=separator + 1, separator=separator, sha256=digest.hexdigest())


def build_encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """The encoder with GPT-2's pattern for words; the separator is its only special token."""
    special = {SEPARATOR: max(ranks.values()) + 1}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
