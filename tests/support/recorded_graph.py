"""A graph of any device, made in Python: it records every op and runs each again in its storage.

What it can replay, a real one can: inputs that moved, a value that the host looked at, or a result
that was made anew each time show in the replayed result. Whatever would have to wait for a device,
or bring something to it, while it records is refused as a real one refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero",
    "aten::masked_select", "aten::unique_dim", "aten::_unique2", "aten::bincount",
    "aten::item", "aten::unique_consecutive",
}  # fmt: skip


class RecordedGraph:
    """One recorded computation; `made` are all that were recorded, in order."""

    made: ClassVar[list[RecordedGraph]] = []

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def capture(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        with Recorder(self.calls):
            result = compute()
        self.made.append(self)
        result.fill_(torch.nan)  # a real one computes nothing yet
        return result

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, recorded in self.calls:
            found = func(*args, **kwargs)
            returns = func._schema.returns
            if func._schema.is_mutable or (returns and returns[0].alias_info is not None):
                continue
            for old, new in zip(tree_leaves(recorded), tree_leaves(found), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


class Recorder(TorchDispatchMode):
    """Computes, and writes down what."""

    def __init__(self, calls: list[tuple[Any, Any, Any, Any]]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.name(), kwargs or {}
        if name.split(".")[0] in _WAITS:
            raise RuntimeError(f"{name} waits for the device while a graph is recorded")
        places = {each.device for each in tree_leaves(args) if isinstance(each, torch.Tensor)}
        found = func(*args, **kwargs)
        copies = name in ("aten::_to_copy", "aten::copy_")
        if copies and places | {found.device} != {found.device}:
            raise RuntimeError(f"{name} between devices while a graph is recorded")
        self._calls.append((func, args, kwargs, found))
        return found
