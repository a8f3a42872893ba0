"""Sizes as people write them, and where the limit comes from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from firstlight.errors import FirstlightError
from firstlight.packed.limit import LIMIT_VARIABLE, limit_of, parse_size, set_limit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("5 B", 5),
        ("20GiB", 20 << 30),
        ("20gib", 20 << 30),
        ("1.5 GB", 1_500_000_000),
        ("512M", 512_000_000),
        (" 2 TiB ", 2 << 40),
        ("3k", 3000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "SIZE") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "12 parsecs", "1.2.3G", "9" * 50, "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(FirstlightError, match="SIZE"):
        parse_size(text, "SIZE")


def test_the_variable_goes_before_the_remembered_limit_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    directory = tmp_path / "not" / "yet"
    quarter = shutil.disk_usage(tmp_path).total // 4
    default = limit_of(directory)
    assert default == min(50 << 30, quarter)
    set_limit(directory, 12345)
    assert limit_of(directory) == 12345
    monkeypatch.setenv(LIMIT_VARIABLE, "7 MiB")
    assert limit_of(directory) == 7 << 20
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(FirstlightError, match=LIMIT_VARIABLE):
        limit_of(directory)
    monkeypatch.delenv(LIMIT_VARIABLE)
    set_limit(directory, None)
    assert limit_of(directory) == default


def test_a_remembered_limit_that_makes_no_sense_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    (tmp_path / "limit").write_text("a lot\n")
    with pytest.raises(FirstlightError, match="limit"):
        limit_of(tmp_path)
