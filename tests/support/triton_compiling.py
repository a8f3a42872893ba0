"""Triton's compilers for chips that are not here: what a kernel is launched with, compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages")


@dataclass
class Launches:
    """Stands for a kernel and keeps what it is launched with, instead of launching it."""

    kernel: Any
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __getitem__(self, grid: Any) -> Any:
        assert all(0 < each < 1 << 31 for each in grid)
        return lambda *arguments, **named: self.found.append((arguments, named))

    def compile(self, *target: Any) -> list[Any]:
        """Each launch compiled for a target: Triton's name of a backend, its chip, threads of a
        warp."""
        return [compiled(self.kernel, *launch, target) for launch in self.found]


@contextmanager
def kept_launches(module: ModuleType, *names: str) -> Iterator[list[Launches]]:
    """Within it nothing is launched of the module's kernels of those names."""
    kept = [Launches(getattr(module, name)) for name in names]
    try:
        for name, launches in zip(names, kept, strict=True):
            setattr(module, name, launches)
        yield kept
    finally:
        for name, launches in zip(names, kept, strict=True):
            setattr(module, name, launches.kernel)


def compiled(
    kernel: Any, arguments: tuple[Any, ...], named: dict[str, Any], target: tuple[Any, ...]
) -> Any:
    """A kernel compiled for these arguments, specialised as Triton would on launching it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: value for name, value in named.items() if name in _OPTIONS}
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    given |= {name: value for name, value in named.items() if name not in _OPTIONS}
    assert list(given) == list(kernel.arg_names)
    constants = {kernel.arg_names[place] for place in kernel.constexprs}
    signature, constexprs, attributes = {}, {}, {}
    for place, (name, value) in enumerate(given.items()):
        special = not kernel.params[place].do_not_specialize
        kind = None if name in constants else _type_of(value, special)
        signature[name] = kind or "constexpr"
        if kind is None:
            constexprs[name] = value
        elif special and _divisible(value):
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(source, target=GPUTarget(*target), options=options)


def _type_of(value: Any, special: bool) -> str | None:
    """Triton's name of an argument's type; None where it is compiled in."""
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value is None or (special and value == 1):
        return None
    return "i32" if abs(value) < 1 << 31 else "i64"


def _divisible(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and value % 16 == 0
