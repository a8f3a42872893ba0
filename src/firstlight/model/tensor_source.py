"""Where each tensor of a model lies in its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stack:
    """Which of the matrices (or vectors) in a tensor with one more axis in front.

    Attributes:
        index, count: this one's number, and how many there are.
        transposed: each is stored [columns, rows].
    """

    index: int
    count: int
    transposed: bool = False


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor of the model comes from.

    Attributes:
        name: the tensor's name in the checkpoint.
        shape: what the model needs; the checkpoint's tensor has this shape, but for its rows where
            it is fused with others.
        first_row: where this part starts in a fused tensor; None: not fused.
        fused_rows: rows of the fused tensor.
        offset: added to every value on loading (Gemma stores norm weights less one).
        row_step: rows between one row of this part and the next, where a fused tensor has the rows
            of its parts in turn.
        stack: which of the tensors that are stacked in one; None: it is one by itself. What is said
            of rows holds within that one.
        scales: name of a second tensor, of the scales of blocks. Then `name` holds 4-bit codes: it
            is mxfp4 as safetensors hold it (see `formats/mxfp4_pair.py`), by blocks or by rows.
        kept: name of the storage format that it is kept in whatever the others are converted to;
            None: as the others.
        integers: it holds whole numbers that are no weights.
        folded: rows of the tensor lie on two axes, the first this long.
        first_column: where this part's columns start in those of the tensor; None: it has all.
        all_columns: columns of the tensor, where this has a part of them.
    """

    name: str
    shape: tuple[int, ...]
    first_row: int | None = None
    fused_rows: int | None = None
    offset: float = 0.0
    row_step: int = 1
    stack: Stack | None = None
    scales: str | None = None
    kept: str | None = None
    integers: bool = False
    folded: int | None = None
    first_column: int | None = None
    all_columns: int | None = None

    @property
    def with_all_columns(self) -> TensorSource:
        """The same rows, whole."""
        if self.first_column is None:
            return self
        shape = (*self.shape[:-1], self.all_columns or self.shape[-1])
        return replace(self, shape=shape, first_column=None, all_columns=None)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor; of values, where these have scales of their own."""
        if self.first_column is not None:
            return self.with_all_columns.stored_shape
        rows = self.shape[0] if self.fused_rows is None else self.fused_rows
        shape = (rows, *self.shape[1:])
        if self.folded is not None:
            return (self.folded, rows // self.folded, *self.shape[1:])
        if self.stack is None:
            return shape
        return (self.stack.count, *(shape[::-1] if self.stack.transposed else shape))
