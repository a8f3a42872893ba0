"""Stop strings, found across any cut of the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.stop_strings import StopStrings

# Few letters, so that stop strings occur, overlap, and nearly occur.
texts = st.text("abc", max_size=30)
stops = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4).map(tuple)


def cut_up(text: str, cuts: list[int]) -> list[str]:
    """The text as pieces, some of them empty."""
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:stop] for start, stop in pairwise(borders)]


def text_before_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """By the definition, a character at a time: up to the stop string that is complete first, the
    longest of them where several end at the same character."""
    for end in range(1, len(text) + 1):
        ending = [each for each in stop if text[:end].endswith(each)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=1000)
@given(texts, stops, st.lists(st.integers(0, 30), max_size=12))
def test_any_cut_gives_the_text_before_the_first_stop_string(
    text: str, stop: tuple[str, ...], cuts: list[int]
) -> None:
    expected, found = text_before_stop(text, stop)
    strings = StopStrings(stop)
    passed_on = ""
    for piece in cut_up(text, cuts):
        passed_on += strings.push(piece)
        assert expected.startswith(passed_on)  # nothing of a stop string, not even for a while
    passed_on += strings.finish()
    assert (passed_on, strings.found) == (expected, found)
    assert not any(each in passed_on for each in stop)


@given(texts, stops)
def test_no_more_is_held_back_than_may_start_a_stop_string(
    text: str, stop: tuple[str, ...]
) -> None:
    strings = StopStrings(stop)
    passed_on = "".join(strings.push(character) for character in text)
    if not strings.found:
        held = text[len(passed_on) :]
        assert held == "" or any(each.startswith(held) and len(held) < len(each) for each in stop)
        # And no less: a longer end of the text is the start of none.
        longer = [text[start:] for start in range(len(passed_on))]
        assert not any(each.startswith(end) for each in stop for end in longer)


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["one", " two"], (), "one two"),
        (["one\n", "\ntwo"], ("\n\n",), "one"),
        (["a<|", "im_e", "nd|>b"], ("<|im_end|>",), "a"),
        (["a<|im_e", "x"], ("<|im_end|>",), "a<|im_ex"),
        (["aab"], ("ab",), "a"),
        (["a", "a", "b"], ("ab",), "a"),
        (["xabcd"], ("abcd", "bc"), "xa"),  # "bc" is complete first
        (["xabc"], ("abc", "bc", "c"), "x"),  # all at once: the longest
        (["END of it"], ("END",), ""),
        (["好", "的。", "完"], ("。完",), "好的"),
    ],
)
def test_examples(pieces: list[str], stop: tuple[str, ...], expected: str) -> None:
    strings = StopStrings(stop)
    assert "".join(map(strings.push, pieces)) + strings.finish() == expected


def test_nothing_comes_after_a_stop_string() -> None:
    strings = StopStrings(("b",))
    assert strings.push("abc") == "a"
    assert strings.push("more") == ""
    assert strings.finish() == ""
