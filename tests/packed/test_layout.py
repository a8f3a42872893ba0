"""The bytes of a packed file: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.packed.file import open_packed
from firstlight.packed.layout import (
    ALIGNMENT,
    PRELUDE_BYTES,
    DamagedPackedFile,
    PackedHeader,
    PackedTensor,
    decode_header,
    header_bytes,
    place,
)
from tests.support.packed_files import KEY, TENSORS, get, small_store


@given(
    st.lists(
        st.builds(
            PackedTensor,
            name=st.text(max_size=60),
            format=st.sampled_from(["q8_0", "bf16"]),
            packed=st.booleans(),
            shape=st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)),
            nbytes=st.integers(0, 1 << 40),
        ),
        max_size=40,
    ),
    st.text(max_size=30),
)
def test_a_header_is_read_as_it_was_written(tensors: list[PackedTensor], model: str) -> None:
    header = place(KEY, model, tensors)
    assert [each.tensor for each in header.tensors] == tensors
    position = ALIGNMENT
    for each in header.tensors:
        assert each.offset % ALIGNMENT == 0
        assert each.offset >= position
        position = each.offset + each.tensor.nbytes
    assert header.size >= position
    finished = header.with_checksums(range(len(tensors)))
    prelude, text = finished.encode()
    assert len(prelude) == PRELUDE_BYTES
    assert len(text) == len(header.encode()[1])
    first = min((each.offset for each in header.tensors), default=header.size)
    assert PRELUDE_BYTES + len(text) <= first
    assert header_bytes(prelude, header.size) == len(text)
    assert decode_header(prelude, text, header.size) == finished


def test_the_documented_layout(tmp_path: Path) -> None:
    """Read by hand, as docs/packed-cache.md says it lies."""
    packed = get(small_store(tmp_path))
    assert packed is not None
    content = packed.path.read_bytes()
    magic, version, zero, length = struct.unpack_from("<16sIIQ", content)
    assert (magic, version, zero) == (b"firstlight-pack\n", 1, 0)
    header = json.loads(content[64 : 64 + length])
    assert header["size"] == len(content)
    assert header["key"] == {"digest": "ab" * 32, "target": "", "layout": "layout 1"}
    third = header["tensors"][2]
    assert third["name"] == "tensor 2"
    assert third["offset"] % 4096 == 0
    import zlib

    data = content[third["offset"] : third["offset"] + third["nbytes"]]
    assert f"{zlib.crc32(data):08x}" == third["checksum"]
    assert packed.path.name == KEY.file_name()


def _header() -> PackedHeader:
    return place(KEY, "model", TENSORS).with_checksums(range(len(TENSORS)))


@given(st.data())
def test_any_changed_byte_of_prelude_and_header_is_noticed(data: st.DataObject) -> None:
    header = _header()
    prelude, text = header.encode()
    content = bytearray((prelude + text).ljust(header.size, b"\0"))
    place_of_change = data.draw(st.integers(0, PRELUDE_BYTES + len(text) - 1))
    content[place_of_change] ^= data.draw(st.integers(1, 255))
    changed = bytes(content[:PRELUDE_BYTES])
    with pytest.raises(DamagedPackedFile):
        length = header_bytes(changed, header.size)
        decode_header(changed, bytes(content[PRELUDE_BYTES : PRELUDE_BYTES + length]), header.size)


def _with(change: object) -> PackedHeader:
    """What is decoded from a header that was changed, with its checksum made to match."""
    import hashlib

    header = _header()
    prelude, text = header.encode()
    content = json.loads(text)
    change(content)  # type: ignore[operator]
    lying = json.dumps(content).encode()
    digest = hashlib.sha256(lying).digest()
    return decode_header(prelude[:-32] + digest, lying, header.size)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.clear(),
        lambda header: header.update(size=header["size"] + 4096),
        lambda header: header.update(tensors=7),
        lambda header: header["tensors"][0].update(offset=header["tensors"][1]["offset"]),
        lambda header: header["tensors"][1].update(offset=0),
        lambda header: header["tensors"][1].update(offset=-4096),
        lambda header: header["tensors"][1].update(offset=header["tensors"][1]["offset"] + 1),
        lambda header: header["tensors"][1].update(offset=True),
        lambda header: header["tensors"][-1].update(offset=1 << 61),
        lambda header: header["tensors"][-1].update(nbytes=1 << 61),
        lambda header: header["tensors"][-1].update(nbytes=1 << 400),
        lambda header: header["tensors"][-1].update(nbytes="8"),
        lambda header: header["tensors"][-1].update(checksum="zz"),
        lambda header: header["tensors"][-1].pop("shape"),
        lambda header: header["key"].update(another="x"),
        lambda header: header.update(key=[]),
    ],
)
def test_a_header_that_lies_is_refused(change: object) -> None:
    with pytest.raises(DamagedPackedFile):
        _with(change)


def test_an_honest_header_passes_the_same_way() -> None:
    assert _with(lambda header: None) == _header()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 70, 4096])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    packed = get(small_store(tmp_path))
    assert packed is not None
    path = tmp_path / "short"
    path.write_bytes(packed.path.read_bytes()[:size])
    with pytest.raises(DamagedPackedFile):
        open_packed(path)
