"""Types of the C++ extension (native/module*.cpp)."""

from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]

def levels() -> list[str]: ...
def processor_name() -> str: ...
def formats() -> dict[str, tuple[int, int]]: ...
def packed_bytes(format: str, rows: int, columns: int) -> int | None: ...

class Matrix:
    def __init__(
        self,
        format: str,
        data: _Array,
        rows: int,
        columns: int,
        packed: bool,
        scales: _Array | None = None,
        scale_rows: int = 1,
        scale_columns: int = 1,
        scale_first_row: int = 0,
    ) -> None: ...
    def scale_groups(self, scales: _Array, factor: float, divides: bool) -> None: ...
    @property
    def format(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def packed(self) -> bool: ...
    def tune(
        self,
        least_count: int,
        most_count: int,
        block_rows: int = 0,
        panels: int = 0,
        fetch_ahead: int = 0,
    ) -> None: ...

class PagedRows:
    def __init__(
        self, row_starts: _Array, positions: _Array, page_table: _Array, page_tokens: int
    ) -> None: ...

class PagedStream:
    def __init__(
        self,
        pages: _Array,
        row_starts: _Array,
        positions: _Array,
        page_table: _Array,
        page_tokens: int,
    ) -> None: ...

class Product:
    def __init__(self, matrix: Matrix, bias: _Array | None) -> None: ...

class Norm:
    def __init__(self, columns: int, epsilon: float, weight: _Array | None) -> None: ...

class AttentionBlock:
    def __init__(
        self,
        heads: int,
        key_value_heads: int,
        head_size: int,
        query: Product,
        key: Product,
        value: Product,
        output: Product,
        scale: float,
        pre_norm: Norm | None,
        post_norm: Norm | None,
        query_norm: Norm | None,
        key_norm: Norm | None,
        window: int,
        soft_cap: float,
        interleaved: bool,
        residual_scale: float | None,
        sinks: _Array | None = None,
    ) -> None: ...

class FeedForwardBlock:
    def __init__(
        self,
        gate: Product,
        up: Product,
        down: Product,
        activation: str,
        pre_norm: Norm | None,
        post_norm: Norm | None,
        residual_scale: float | None,
    ) -> None: ...

class ExpertsBlock:
    def __init__(
        self,
        router: Product,
        products: list[Product],
        shared: list[Product],
        shared_gate: Product | None,
        activation: str,
        top_k: int,
        score: str,
        groups: int,
        groups_kept: int,
        group_counted: int,
        renormalised: bool,
        scale: float,
        correction: _Array | None,
        pre_norm: Norm | None,
        post_norm: Norm | None,
        residual_scale: float | None,
        use: _Array | None = None,
        places: _Array | None = None,
        clamp: tuple[float, float, float] | None = None,
    ) -> None: ...

class LatentBlock:
    def __init__(
        self,
        latent_size: int,
        plain_size: int,
        rope_size: int,
        value_size: int,
        query_down: Product | None,
        query_down_norm: Norm | None,
        query: Product,
        latent: Product,
        latent_norm: Norm | None,
        key_up: list[Product],
        value_up: list[Product],
        output: Product,
        scale: float,
        interleaved: bool,
        pre_norm: Norm | None,
        post_norm: Norm | None,
        residual_scale: float,
    ) -> None: ...

class Head:
    def __init__(
        self, product: Product, norm: Norm | None, scale: float, soft_cap: float
    ) -> None: ...

class Kernels:
    def __init__(self, level: str, threads: int, exact: bool = False) -> None: ...
    @property
    def multiplies_bfloat16(self) -> bool: ...
    @property
    def multiplies_float8(self) -> bool: ...
    def linear(
        self,
        x: _Array,
        matrix: Matrix,
        bias: _Array | None,
        out: _Array,
        round_to_bfloat16: bool = False,
    ) -> None: ...
    def linear_group(
        self,
        x: _Array,
        matrices: list[Matrix],
        biases: list[_Array | None],
        outs: list[_Array],
        round_to_bfloat16: bool = False,
    ) -> None: ...
    def linear_each(self, x: _Array, matrices: tuple[Matrix, ...], out: _Array) -> None: ...
    def embed(self, matrix: Matrix, token_ids: _Array, out: _Array) -> None: ...
    def pack(self, format: str, data: _Array, rows: int, columns: int, out: _Array) -> None: ...
    def rms_norm(self, x: _Array, weight: _Array | None, epsilon: float, out: _Array) -> None: ...
    def gate(self, gate_values: _Array, up: _Array, activation: str, out: _Array) -> None: ...
    def clamped_gate(
        self,
        gate_values: _Array,
        up: _Array,
        limit: float,
        slope: float,
        offset: float,
        out: _Array,
    ) -> None: ...
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
        round_to_bfloat16: bool = False,
        tile_queries: int = 0,
        head_parts: int = 0,
        sinks: _Array | None = None,
    ) -> None: ...
    def select_entries(
        self,
        queries: _Array,
        weights: _Array,
        keys: PagedStream,
        stride: int,
        top_k: int,
        out: _Array,
    ) -> None: ...
    def selected_attention(
        self, queries: _Array, entries: PagedStream, selected: _Array, scale: float, out: _Array
    ) -> None: ...
    def compressed_attention(
        self,
        queries: _Array,
        keys: PagedStream,
        window: int,
        entries: PagedStream,
        stride: int,
        chosen: _Array | None,
        scale: float,
        sinks: _Array,
        out: _Array,
    ) -> None: ...
    def pool_runs(
        self, entries: PagedStream, stride: int, before: PagedStream | None, out: _Array
    ) -> None: ...
    def attention_block(
        self,
        block: AttentionBlock,
        x: _Array,
        keys: _Array,
        values: _Array,
        rows: PagedRows,
        cosine_sine: _Array | None,
        out: _Array,
        tile_queries: int = 0,
        head_parts: int = 0,
    ) -> None: ...
    def feed_forward_block(self, block: FeedForwardBlock, x: _Array, out: _Array) -> None: ...
    def experts_block(
        self, block: ExpertsBlock, x: _Array, chosen: _Array | None, out: _Array
    ) -> None: ...
    def latent_block(
        self,
        block: LatentBlock,
        x: _Array,
        entries: _Array,
        rows: PagedRows,
        cosine_sine: _Array,
        out: _Array,
    ) -> None: ...
    def logits(self, head: Head, x: _Array, wanted: _Array, out: _Array) -> None: ...
    def measure_bandwidth(self, bytes: int) -> tuple[float, str]: ...
    def multiply_add_types(self) -> list[str]: ...
    def measure_multiply_add(self, type: str, seconds: float) -> float: ...
