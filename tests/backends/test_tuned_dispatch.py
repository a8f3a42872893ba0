"""What was tuned for a shape runs for that shape, and nothing else changes."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from firstlight.backends.kernel import Choice, Kernel, Parameter, choices
from firstlight.ops.contract import get_op
from firstlight.ops.shape import context_range, rows_of_range, rows_range
from tests.support.fake_chip import FakeChip

WAY = Parameter("way", ("left", "right"), "left")


class Noted:
    """A kernel that notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, x: Any, factor: float, *, way: str = "left") -> Any:
        self.calls.append(way)
        return get_op("scale").definition(x, factor)


def chip(noted: Noted, **settings: Any) -> FakeChip:
    return FakeChip((Kernel("scale", "noted", noted, parameters=(WAY,), **settings),))


def test_a_choice_serves_its_shape_only() -> None:
    noted = Noted()
    backend = chip(noted)
    backend.apply_tuning("scale", (16, "5-16"), Choice("noted", (("way", "right"),)))
    for shape in ((5, 16), (16, 16), (17, 16), (5, 15)):
        backend.scale(np.ones(shape, np.float32), 2.0)
    assert noted.calls == ["right", "right", "left", "left"]
    backend.apply_tuning("scale", (16, "5-16"), None)
    backend.scale(np.ones((5, 16), np.float32), 2.0)
    assert noted.calls[-1] == "left"
    assert backend.tuning() == {}


def test_a_definition_can_be_chosen() -> None:
    noted = Noted()
    backend = chip(noted)
    backend.apply_tuning("scale", (4, "1"), Choice("definition"))
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(backend.scale(x, 2.0), 2 * x)
    assert noted.calls == []
    assert backend.usage()["scale", "definition"][0] == 1


def test_a_choice_is_passed_over_where_it_cannot_serve() -> None:
    noted = Noted()
    backend = chip(noted, allows=lambda x, factor, way: way == "left" or factor > 1)
    backend.apply_tuning("scale", (4, "1"), Choice("noted", (("way", "right"),)))
    for factor in (2.0, 0.5):
        backend.scale(np.ones((1, 4), np.float32), factor)
    assert noted.calls == ["right", "left"]


@pytest.mark.parametrize(
    "choice",
    [
        Choice("gone"),
        Choice("noted", (("way", "up"),)),
        Choice("noted", (("speed", 1),)),
        Choice("definition", (("way", "left"),)),
    ],
)
def test_unknown_choices_are_refused(choice: Choice) -> None:
    with pytest.raises(ValueError, match="cannot be had"):
        chip(Noted()).apply_tuning("scale", (4, "1"), choice)


def test_choices_come_nearest_to_the_default_first() -> None:
    both = Kernel("scale", "k", Noted(), parameters=(WAY, Parameter("tile", (4, 8), 8)))
    assert [str(choice) for choice in choices(both)] == [
        "k",
        "k(tile=4)",
        "k(way=right)",
        "k(way=right, tile=4)",
    ]


def test_a_default_is_one_of_the_values() -> None:
    with pytest.raises(ValueError, match="none of"):
        Parameter("way", ("left",), "right")


def test_the_cpu_backends_defaults_are_those_of_its_functions() -> None:
    backend = pytest.importorskip("firstlight.backends.cpu.backend").CpuBackend(threads=1)
    seen = 0
    for kernel in backend.kernels():
        signature = inspect.signature(kernel.run).parameters
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.values()):
            continue  # a product: none is "as the weight's handle has it"
        for parameter in kernel.parameters:
            assert signature[parameter.name].default == parameter.default
            seen += 1
    assert seen


def test_ranges() -> None:
    names = [rows_range(rows) for rows in (0, 1, 2, 4, 5, 16, 17, 64, 65, 4096)]
    assert names == ["1", "1", "2-4", "2-4", "5-16", "5-16", "17-64", "17-64", "65+", "65+"]
    for name in names:
        least, most = rows_of_range(name)
        assert {rows_range(least), rows_range(least if most is None else most)} == {name}
    assert [context_range(n) for n in (0, 256, 257, 1024, 1025)] == [256, 256, 1024, 1024, 4096]
