"""The forms of Combiner attention, on q, k, v [B, H, R, S, E]: R rows (segments) of S tokens.

q is divided by √E already. A summary of a run of tokens has the maximum of their keys as its key, and as its
value their values weighted by softmax(maximum of their queries · keys).
"""

from __future__ import annotations

import torch
from torch import Tensor


def fixed(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Own row token by token (up to itself if causal), earlier rows (all others if not) by summaries."""
    R = q.shape[2]
    own = q @ k.transpose(-2, -1)  # [B, H, R, S, S]
    summary_q, summary_k = q.amax(3), k.amax(3)  # [B, H, R, E]
    weights = (k @ summary_q.unsqueeze(-1)).softmax(3)
    summary_v = (weights * v).sum(3)
    others = torch.einsum("bhrse,bhpe->bhrsp", q, summary_k)
    row = torch.arange(R, device=q.device)
    hidden = row >= row[:, None] if causal else row == row[:, None]
    others = others.masked_fill(hidden[:, None], -torch.inf)
    own = _up_to_itself(own) if causal else own
    a, b = _one_softmax(own, others)
    return a @ v + torch.einsum("bhrsp,bhpe->bhrse", b, summary_v)


def row_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What each token gathers of its whole row [B, H, R, S, E], later tokens included: for later rows."""
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def axial(q: Tensor, k: Tensor, v: Tensor, row_keys: Tensor, row_values: Tensor) -> Tensor:
    """Own row up to itself; of earlier rows, what the token of the same column has gathered."""
    own, column = _up_to_itself(q @ k.transpose(-2, -1)), _earlier_in_column(q, row_keys)
    a, b = _one_softmax(own, column)
    return a @ v + _read_column(b, row_values)


def mixture(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Own row up to itself; own column; of each other column the summary above the row; of each earlier row
    the summaries left and right of the column. Places are covered more than once, as in the public code."""
    S = q.shape[3]
    q_columns, k_columns, v_columns = (each.transpose(2, 3) for each in (q, k, v))  # [B, H, S, R, E]
    own = _up_to_itself(q @ k.transpose(-2, -1))
    column = _earlier_in_column(q, k)

    above_k, above_v = (_shifted(each).transpose(2, 3) for each in _prefixes(q_columns, k_columns, v_columns))
    above = q @ above_k.transpose(-2, -1)  # [B, H, R, S, S]: of row r, column i reads column j above r
    hidden = torch.eye(S, dtype=torch.bool, device=q.device)
    hidden = hidden | (torch.arange(q.shape[2], device=q.device) == 0)[:, None, None]
    above = above.masked_fill(hidden, -torch.inf)

    left_k, left_v = (_shifted(each) for each in _prefixes(q, k, v))
    right_k, right_v = (_shifted(each).flip(3) for each in _prefixes(q.flip(3), k.flip(3), v.flip(3)))
    left, right = _earlier_in_column(q, left_k), _earlier_in_column(q, right_k)
    place = torch.arange(S, device=q.device)[:, None]
    left, right = left.masked_fill(place == 0, -torch.inf), right.masked_fill(place == S - 1, -torch.inf)

    a, b, c, d, e = _one_softmax(own, column, above, left, right)
    from_rows = _read_column(b, v) + _read_column(d, left_v) + _read_column(e, right_v)
    return a @ v + from_rows + c @ above_v


def _prefixes(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the summaries of every prefix along dimension 3, its last token included."""
    weights = _up_to_itself(q.cummax(3).values @ k.transpose(-2, -1)).softmax(-1)
    return k.cummax(3).values, weights @ v


def _shifted(summaries: Tensor) -> Tensor:
    """Of each place along dimension 3 the summary that ends before it; the first place has none (zeros)."""
    return torch.cat((torch.zeros_like(summaries[:, :, :, :1]), summaries[:, :, :, :-1]), 3)


def _up_to_itself(logits: Tensor) -> Tensor:
    n = logits.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool, device=logits.device).triu(1)
    return logits.masked_fill(later, -torch.inf)


def _earlier_in_column(q: Tensor, keys: Tensor) -> Tensor:
    """Logits [B, H, R, S, R] of each token with the keys of its column, of earlier rows only."""
    logits = torch.einsum("bhrse,bhpse->bhrsp", q, keys)
    row = torch.arange(q.shape[2], device=q.device)
    return logits.masked_fill((row >= row[:, None])[:, None], -torch.inf)


def _read_column(weights: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("bhrsp,bhpse->bhrse", weights, values)


def _one_softmax(*logits: Tensor) -> tuple[Tensor, ...]:
    """Softmax over the last dimensions of several groups together."""
    return torch.cat(logits, -1).softmax(-1).split([each.shape[-1] for each in logits], -1)
