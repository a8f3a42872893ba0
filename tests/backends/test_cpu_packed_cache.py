"""What the cache of packed weights asks of the cpu backend."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.backends import available_devices
from firstlight.formats.registry import get_format, known_formats
from firstlight.verify.random_weights import random_weight

pytestmark = pytest.mark.skipif("cpu" not in available_devices(), reason="not built here")


@pytest.mark.parametrize("name", known_formats())
@pytest.mark.parametrize("rows", [1, 16, 33, 70])
def test_groups_of_rows_are_packed_where_they_belong(name: str, rows: int) -> None:
    from firstlight.backends.cpu.backend import CpuBackend
    from firstlight.backends.cpu.packed import aligned_bytes

    backend = CpuBackend(threads=2)
    format = get_format(name)
    columns = 512
    size = backend.packed_bytes(format, rows, columns)
    if size is None:
        pytest.skip("used in place")
    weight = random_weight(format, rows, columns, np.random.default_rng(rows))
    whole, parts = (aligned_bytes(size) for _ in range(2))
    backend.pack_into(weight, whole)
    group = backend.packed_row_group(format)
    assert group is not None
    position = 0
    for start in range(0, rows, 2 * group):
        stop = min(start + 2 * group, rows)
        part = backend.packed_bytes(format, stop - start, columns)
        assert part is not None
        assert position % 64 == 0
        backend.pack_into(weight.row_slice(start, stop), parts[position : position + part])
        position += part
    assert position == size
    assert np.array_equal(whole, parts)
    whole.flags.writeable = False
    packed = backend.packed_from(format, (rows, columns), whole, "matrix")
    assert np.array_equal(backend.unpack(packed).values(), weight.values())


def test_exactness_needs_no_packed_weights() -> None:
    from firstlight.backends.cpu.backend import CpuBackend

    exact = CpuBackend(exact=True)
    assert exact.packed_layout() is None
    assert exact.packed_bytes(get_format("q8_0"), 16, 512) is None
    assert CpuBackend().packed_layout() == "cpu, panels-2"
