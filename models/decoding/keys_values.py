"""The key/value cache of self-attention."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from models.decoding.cache import Rows
from models.positions.attend import Attend

Project = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class KeysAndValues:
    """Keeps the keys and values of all tokens, 2·N·D numbers per sequence; a new token costs its projections
    and one product with each.

    project   x[B, n, C] → q, k, v[B, H, n, E]
    join      the heads' outputs [B, H, n, E] → [B, n, C]
    attend    the layer's attention; positions may act in it
    """

    recomputes = False

    def __init__(
        self, project: Project, join: Callable[[Tensor], Tensor], attend: Attend, num_tokens: int
    ) -> None:
        self._project, self._join, self._attend = project, join, attend
        self._k, self._v = Rows(num_tokens), Rows(num_tokens)  # [m, B, H, E]

    def extend(self, x_BnC: Tensor) -> Tensor:
        first = self._k.count
        q, k, v = self._project(x_BnC)
        q, k = self._attend.placed(q, first), self._attend.placed(k, first)
        self._k.add(k.permute(2, 0, 1, 3))
        self._v.add(v.permute(2, 0, 1, 3))
        k_BHME, v_BHME = (rows.all.permute(1, 2, 0, 3) for rows in (self._k, self._v))
        return self._join(self._attend.extend(q, k_BHME, v_BHME))
