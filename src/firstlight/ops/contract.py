"""What an op is: a name, a definition, how far a kernel may stray from it, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from firstlight.ops.shape import Shape

Definition = TypeVar("Definition", bound=Callable[..., Any])


@dataclass(frozen=True)
class Cost:
    """What an op must at least do, from its arguments alone; the numerator of a share of ceiling.

    Attributes:
        bytes_moved: bytes of weights, state and activations read or written once.
        operations: arithmetic operations, a multiply and an add counted as two.
    """

    bytes_moved: int
    operations: int


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel's float32 result may be from the definition's.

    A result passes where |kernel - definition| <= absolute + relative * scale, and scale is the
    largest magnitude of the definition's result (so that a sum which cancels is judged by the
    terms that went into it and not by what is left of them).

    Attributes:
        tipped: added to `relative` where values that the op makes on its way are rounded:
            activations, as a kernel's rounding says, weights of a softmax to bfloat16, or entries
            of a bfloat16 stream. One that lies at the border of two steps may then be rounded the
            other way, and is off by 2^-8 of itself, or in mixed16 by 2^-7 of a value of its group.
    """

    relative: float
    absolute: float
    reason: str
    tipped: float = 0.0


@dataclass(frozen=True)
class Op:
    """One entry of the contract.

    Attributes:
        name: the method's name on `Ops`.
        definition: the NumPy function that the op means. A composite's first parameter is the
            `Ops` whose smaller ops it is made of.
        tolerance: for kernels against the definition.
        cost: same arguments as the definition (a composite's without the `Ops`) -> Cost.
        composite: made of smaller ops; a backend without a kernel runs the parts, each with
            its own kernel.
        writes: indices of the arguments that the op changes in place (of a composite's without the
            `Ops`).
        shape: same arguments as `cost`, as the backend keeps them -> what decides which kernel is
            fastest (`ops/shape.py`); quick to make, since it is made at every tuned call. None:
            the op is not tuned.
    """

    name: str
    definition: Callable[..., Any]
    tolerance: Tolerance
    cost: Callable[..., Cost]
    composite: bool = False
    writes: tuple[int, ...] = ()
    shape: Callable[..., Shape] | None = None


_OPS: dict[str, Op] = {}


def define(
    tolerance: Tolerance,
    cost: Callable[..., Cost],
    *,
    composite: bool = False,
    writes: tuple[int, ...] = (),
    shape: Callable[..., Shape] | None = None,
) -> Callable[[Definition], Definition]:
    """Enter the decorated function into the contract under its own name."""

    def enter(definition: Definition) -> Definition:
        name = definition.__name__
        _OPS[name] = Op(name, definition, tolerance, cost, composite, writes, shape)
        return definition

    return enter


def get_op(name: str) -> Op:
    """The op of that name; KeyError if there is none."""
    return _OPS[name]


def all_ops() -> Iterator[Op]:
    """Every op of the contract, by name."""
    for name in sorted(_OPS):
        yield _OPS[name]
