"""The table of pieces, against a dictionary."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.checkpoint.piece_table import CorruptTable, PieceTable

pieces = st.lists(st.binary(max_size=6) | st.text("a▁é", max_size=4).map(str.encode), max_size=40)


@settings(max_examples=300, deadline=None)
@given(pieces, st.lists(st.binary(max_size=6)))
def test_is_a_dictionary_and_a_list(present: list[bytes], others: list[bytes]) -> None:
    ids = {piece: number for number, piece in enumerate(present)}  # the last of equal ones
    built = PieceTable.build(present)
    for table in (built, PieceTable.from_bytes(built.to_bytes())):
        assert len(table) == len(present)
        assert [table[number] for number in range(len(present))] == present
        for piece in present + others:
            assert table.find(piece) == ids.get(piece, -1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab▁\n\ufffd😀", max_size=6)))
def test_joiners_stand_right_before_a_space(present: list[str]) -> None:
    joiners = {
        before for piece in present for before, after in pairwise(piece) if after == "▁" != before
    }
    table = PieceTable.build([piece.encode() for piece in present])
    assert set(table.joiners) == joiners
    assert PieceTable.from_bytes(table.to_bytes()).joiners == table.joiners


def test_any_change_of_the_bytes_is_noticed() -> None:
    data = PieceTable.build([b"one", b"two", "▁drei".encode()]).to_bytes()
    for place in range(len(data)):
        with pytest.raises(CorruptTable):
            PieceTable.from_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CorruptTable):
            PieceTable.from_bytes(data[:place])
    with pytest.raises(CorruptTable):
        PieceTable.from_bytes(data + b"\0")
