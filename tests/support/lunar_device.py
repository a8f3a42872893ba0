"""A device of a type that PyTorch has never heard of, made in Python: what a maker's plug-in is.

PyTorch keeps one type free for devices from outside (PrivateUse1), which a plug-in gives a name.
Here it is called `lunar`. A tensor there holds a tensor of the host that nothing else can see:
every op goes through the dispatcher to `_compute`, which computes on what is held. So whatever
mixes devices, names a type, or needs more than ordinary ops fails as it would on such a chip.

Two things are told of it that the host's device lacks: products of bfloat16 matrices as float32
sums (mm and bmm with out_dtype), and a count of tensors that went to the host (`Lunar.downloads`).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "lunar"
aten = torch.ops.aten


class Lunar(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor
    downloads = 0
    refuses: frozenset[str] = frozenset()

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.name()
    if name in Lunar.refuses:
        raise NotImplementedError(f"{name} is not there")
    if name == "aten::copy_":
        return _copy(*args[:2])
    if name == "aten::_to_copy":
        return _to_copy(args[0], **kwargs)
    _check_devices(name, args, kwargs)
    given = tree_map(_held, args)
    named = {key: tree_map(_held, value) for key, value in kwargs.items()}
    if isinstance(named.get("device"), torch.device):
        named["device"] = torch.device("cpu")
    named.pop("pin_memory", None)
    if name in ("aten::mm.dtype", "aten::bmm.dtype"):
        left, right, dtype = given
        product = torch.mm if name == "aten::mm.dtype" else torch.bmm
        return Lunar(product(left.to(dtype), right.to(dtype)))
    result = func(*given, **named)
    if isinstance(result, torch.Tensor) and func._schema.is_mutable:
        return args[0]  # changed in place
    return tree_map(lambda each: Lunar(each) if isinstance(each, torch.Tensor) else each, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Lunar) else value


def _check_devices(name: str, args: Any, kwargs: Any) -> None:
    """Tensors of the host may not take part, but for single numbers."""
    found: list[torch.Tensor] = []
    tree_map(lambda each: found.append(each) if isinstance(each, torch.Tensor) else None, args)
    for each in found:
        if not isinstance(each, Lunar) and each.dim():
            raise RuntimeError(f"{name}: a tensor of the host meets one of {NAME}")


def _copy(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    if isinstance(source, Lunar) and not isinstance(target, Lunar):
        Lunar.downloads += 1
    _held(target).copy_(_held(source))
    return target


def _to_copy(tensor: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    device = kwargs.pop("device", None)
    kwargs.pop("pin_memory", None)
    kwargs.pop("non_blocking", None)
    there = NAME if device is None and isinstance(tensor, Lunar) else (device and device.type)
    copied = aten._to_copy(_held(tensor), **kwargs)
    if there == NAME:
        return Lunar(copied)
    if isinstance(tensor, Lunar):
        Lunar.downloads += 1
    return copied


_made: list[torch.library.Library] = []


def register() -> str:
    """Register the device with PyTorch, once a process: its name."""
    if not _made:
        module = SimpleNamespace(
            device_count=lambda: 1,
            is_available=lambda: True,
            current_device=lambda: 0,
            synchronize=lambda device=None: None,
            get_device_name=lambda device=None: "Lunar 1",
            _is_in_bad_fork=lambda: False,
            manual_seed_all=lambda seed: None,
        )
        _setup_privateuseone_for_python_backend(NAME, module)
        library = torch.library.Library("aten", "IMPL")
        for op in (
            "empty.memory_format", "empty_strided", "_to_copy", "arange", "arange.start",
            "arange.start_step", "zeros", "full", "ones", "_copy_from",
        ):  # fmt: skip
            library.impl(op, _factory(op), "PrivateUse1")
        _made.append(library)
    return NAME


def _factory(op: str) -> Any:
    packet, _, overload = op.partition(".")
    func = getattr(getattr(aten, packet), overload or "default")

    def make(*args: Any, **kwargs: Any) -> Any:
        if op == "_copy_from":
            return _copy(args[1], args[0])
        return _compute(func, args, kwargs)

    return make
