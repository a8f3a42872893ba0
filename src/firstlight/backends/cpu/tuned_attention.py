"""How attention is cut into tasks, as the tuner chose it, where fused blocks find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from firstlight.backends.kernel import Parameter, Value
from firstlight.formats.base import Floats
from firstlight.ops.attention import attention_shape
from firstlight.ops.paging import PagedRows
from firstlight.ops.shape import Shape

# Fields of AttentionCall in native/kernel_table.hpp; 0 leaves the choice to the kernel.
ATTENTION_PARAMETERS = (
    Parameter("tile_queries", (0, 32, 96, 24, 64, 16, 128), 0),
    Parameter("head_parts", (0, 1, 2, 4, 8, 16), 0),
)
_UNTUNED: Mapping[str, Any] = {each.name: each.default for each in ATTENTION_PARAMETERS}


def allows_attention(
    queries: Floats,
    keys: NDArray[Any],
    values: NDArray[Any],
    rows: PagedRows,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    *,
    tile_queries: int,
    head_parts: int,
) -> bool:
    """Whether such a tuning differs from others for these arguments."""
    # A tile is filled by the queries of one sequence that share a key-value head.
    longest = len(queries) - rows.sequences + 1
    shared = queries.shape[1] // max(1, keys.shape[2])
    if tile_queries and (longest <= 1 or tile_queries > longest * shared):
        return False
    heads: int = keys.shape[2]
    return head_parts <= heads


class TunedAttention:
    """What was chosen for each shape of attention, for blocks that call it themselves."""

    def __init__(self) -> None:
        self._chosen: dict[Shape, Mapping[str, Value]] = {}

    def tune(self, shape: Shape, values: Mapping[str, Value] | None) -> None:
        """Have attention of a shape cut so; None: as without tuning."""
        if values:
            self._chosen[shape] = values
        else:
            self._chosen.pop(shape, None)

    def values(
        self,
        count: int,
        heads: int,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        window: int | None,
    ) -> Mapping[str, Any]:
        """The parameters for `count` rows of queries with so many heads."""
        if not self._chosen:
            return _UNTUNED
        shape = attention_shape(count, heads, keys, values, rows, window)
        return self._chosen.get(shape, _UNTUNED)
