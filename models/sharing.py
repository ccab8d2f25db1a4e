"""Share rules: which distances between tokens use one bank entry, along each dimension of a grid.

none        every distance is alone
log(b)      distance 0 is alone; from 1 on a bucket holds the whole distances of [b^(k−1), b^k), and an
            interval without one is no bucket. log(2): 0 | 1 | 2 3 | 4 … 7; log(1.5): 0 | 1 | 2 | 3 | 4 5 |
            6 7 | 8 … 11. b is the decimal number that is written, so boundaries are the same everywhere
log         log(2)
clip(r)     distances below r are alone, r and all above share one bucket; clip(0) is one matrix for all pairs
"""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

_LOG = re.compile(r"log\((\d+(?:\.\d+)?)\)", re.ASCII)
_CLIP = re.compile(r"clip\((\d+)\)", re.ASCII)


def check_share(share: str) -> str:
    """The rule itself; raises ValueError, with what would be right, for text that is none."""
    match = _LOG.fullmatch(share)
    if share in ("none", "log") or _CLIP.fullmatch(share) or (match and Decimal(match[1]) > 1):
        return share
    raise ValueError("none, log, log(FACTOR) with a factor above 1, or clip(RADIUS) is needed")


Share = Annotated[str, AfterValidator(check_share)]


def one_matrix(share: str) -> bool:
    """Whether all pairs, also those of the class token, use one entry."""
    match = _CLIP.fullmatch(share)
    return match is not None and int(match[1]) == 0


@lru_cache
def buckets(share: str, n: int) -> tuple[int, ...]:
    """The bucket of each distance 0 … n−1; buckets are numbered from 0 without gaps, in order of distance.

    Raises ValueError for a rule that does not exist.
    """
    try:
        check_share(share)
    except ValueError as error:
        raise ValueError(f"share {share!r}: {error}") from None
    if match := _CLIP.fullmatch(share):
        return tuple(min(distance, int(match[1])) for distance in range(n))
    match = _LOG.fullmatch(share)
    return tuple(range(n)) if share == "none" else _log_buckets(Decimal(match[1] if match else 2), n)


def _log_buckets(factor: Decimal, n: int) -> tuple[int, ...]:
    if factor * (n - 2) <= n - 1:
        return tuple(range(n))  # even n−2 and n−1 are too far apart; a tiny factor has endless powers
    found, bucket, bound = [0], 0, Decimal(1)
    with localcontext(prec=50):
        for distance in range(1, n):
            if bound <= distance:
                bucket += 1
            while bound <= distance:
                bound *= factor
            found.append(bucket)
    return tuple(found)
