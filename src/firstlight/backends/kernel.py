"""A kernel, what of it can be tuned, and one way of running an op."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

from firstlight.ops.rounding import RoundingOf, no_rounding

DEFINITION = "definition"

Value = int | str


@dataclass(frozen=True)
class Parameter:
    """Something about a kernel that may be chosen freely: a tile size, a split, a variant.

    It may change how long the kernel takes and nothing else: the tuner refuses values that change
    a single bit of the result, because they are chosen for each number of rows and a token must
    not depend on its batch.

    Attributes:
        name: the keyword argument of the kernel's `run`.
        values: what it may be, in the order in which they are worth trying.
        default: what it is without tuning: one of the values, and the argument's own default.
    """

    name: str
    values: tuple[Value, ...]
    default: Value

    def __post_init__(self) -> None:
        if self.default not in self.values:
            raise ValueError(f"{self.name}: the default {self.default} is none of {self.values}")


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op on one backend.

    Attributes:
        op: the op's name in the contract.
        name: unique among the op's kernels on this backend.
        run: takes the op's arguments as the backend's tensors, and its parameters by name.
        accepts: whether this kernel can serve these arguments; None: always.
        rounding: how its products, those of attention with keys and values too, round their
            activations; it must agree with the definition on activations so rounded.
        parameters: what the tuner may choose.
        allows: whether a combination of parameters (by name, after the op's arguments) can be used
            and is worth a try for these arguments; None: every one.
    """

    op: str
    name: str
    run: Callable[..., Any]
    accepts: Callable[..., bool] | None = None
    rounding: RoundingOf = no_rounding
    parameters: tuple[Parameter, ...] = ()
    allows: Callable[..., bool] | None = None

    def takes(self, *arguments: Any) -> bool:
        """Whether it can serve these arguments."""
        return self.accepts is None or self.accepts(*arguments)


@dataclass(frozen=True)
class Choice:
    """One way of running an op: a kernel of its backend, or the definition, and its parameters.

    Attributes:
        kernel: a kernel's name, or DEFINITION.
        parameters: (name, value) of each that is not at its default, in the kernel's order.
    """

    kernel: str
    parameters: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.kernel}({values})" if values else self.kernel


@dataclass(frozen=True)
class Tuned:
    """A choice made ready to be called.

    Attributes:
        kernel: the kernel, or None for the definition.
        run: takes the op's arguments.
        values: every parameter of the kernel.
        accepts: whether it can serve these arguments; None: always.
    """

    choice: Choice
    kernel: Kernel | None
    run: Callable[..., Any]
    values: Mapping[str, Value] = field(default_factory=dict)
    accepts: Callable[..., bool] | None = None

    def takes(self, *arguments: Any) -> bool:
        """Whether it can serve these arguments."""
        return self.accepts is None or self.accepts(*arguments)


def choices(kernel: Kernel) -> Iterator[Choice]:
    """Every combination of a kernel's parameters, those nearest to the defaults first."""
    spaces = [
        [(parameter.name, value) for value in parameter.values] for parameter in kernel.parameters
    ]
    defaults = {parameter.name: parameter.default for parameter in kernel.parameters}
    combinations = [
        tuple((name, value) for name, value in chosen if value != defaults[name])
        for chosen in product(*spaces)
    ]
    yield from (Choice(kernel.name, chosen) for chosen in sorted(combinations, key=len))


def tuned(kernel: Kernel, choice: Choice) -> Tuned | None:
    """A choice of this kernel, ready; None where the kernel has no such parameter or value."""
    known = {parameter.name: parameter for parameter in kernel.parameters}
    for name, value in choice.parameters:
        if name not in known or value not in known[name].values:
            return None
    given = dict(choice.parameters)
    values = {name: given.get(name, parameter.default) for name, parameter in known.items()}
    # `True == 1`: a value from a file must be of the declared type too.
    if any(isinstance(value, bool) for value in values.values()):
        return None
    run = partial(kernel.run, **values) if values else kernel.run
    allows = kernel.allows
    if allows is None:
        return Tuned(choice, kernel, run, values, kernel.accepts)

    def accepts(*arguments: Any) -> bool:
        return kernel.takes(*arguments) and allows(*arguments, **values)

    return Tuned(choice, kernel, run, values, accepts)
