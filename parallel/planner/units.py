"""Reads and writes sizes as people do: 80GB, 1.25 TFLOP."""

from __future__ import annotations

import re

from parallel.errors import UserError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_size(text: str, option: str) -> float:
    """Bytes from "80GB", "64 GiB" or a plain number; raises UserError that names the option."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(I?)B?(?:/S)?\s*", text.upper())
    if not match or float(match[1]) == 0:
        raise UserError(f"{option}={text}: expected a size such as 80GB or 64GiB")
    return float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]]


def size_text(count: float, unit: str = "B") -> str:
    """Three digits: 250 GB, 1.25 TFLOP."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(count) < 999.5:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} E{unit}"
