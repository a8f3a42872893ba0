"""Types of the C++ extension (native/module.cpp)."""

from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]

def levels() -> list[str]: ...
def processor_name() -> str: ...
def formats() -> dict[str, tuple[int, int]]: ...

class Kernels:
    def __init__(self, level: str, threads: int) -> None: ...
    def linear(
        self,
        x: _Array,
        format: str,
        data: _Array,
        columns: int,
        bias: _Array | None,
        out: _Array,
    ) -> None: ...
    def embed(
        self, format: str, data: _Array, columns: int, token_ids: _Array, out: _Array
    ) -> None: ...
    def rms_norm(self, x: _Array, weight: _Array | None, epsilon: float, out: _Array) -> None: ...
    def gate(self, gate_values: _Array, up: _Array, activation: str, out: _Array) -> None: ...
    def add(self, x: _Array, y: _Array, scale: float, out: _Array) -> None: ...
    def scale(self, x: _Array, factor: float, out: _Array) -> None: ...
    def soft_cap(self, x: _Array, cap: float, out: _Array) -> None: ...
    def take_rows(self, x: _Array, indices: _Array, out: _Array) -> None: ...
    def rotary(self, x: _Array, cosine_sine: _Array, interleaved: bool, out: _Array) -> None: ...
    def stream_write(
        self,
        pages: _Array,
        values: _Array,
        row_starts: _Array,
        positions: _Array,
        page_table: _Array,
        page_tokens: int,
    ) -> None: ...
    def attention(
        self,
        queries: _Array,
        keys: _Array,
        values: _Array,
        row_starts: _Array,
        positions: _Array,
        page_table: _Array,
        page_tokens: int,
        scale: float,
        window: int,
        soft_cap: float,
        out: _Array,
        tile_queries: int = 0,
        head_parts: int = 0,
    ) -> None: ...
    def measure_bandwidth(self, bytes: int) -> float: ...
    def measure_multiply_add(self, seconds: float) -> float: ...
