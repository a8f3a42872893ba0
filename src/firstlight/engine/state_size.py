"""How many pages each stream group gets of a given amount of memory."""

from __future__ import annotations

from collections.abc import Sequence as Items

from firstlight.errors import InsufficientMemoryError
from firstlight.model.stream import StreamGroup, StreamSpec

# Memory beyond what one sequence of full length needs is divided among groups as sequences of
# this many tokens would fill them.
_USUAL_TOKENS = 2048


def pages_per_sequence(
    window: int | None, context_length: int, token_budget: int, page_tokens: int
) -> int:
    """Pages of a stream group that one sequence can hold at once.

    While a chunk is computed those are the pages of the chunk's positions and of the window before
    its first; wherever these begin within a page.
    """
    whole = -(-context_length // page_tokens)
    if window is None:
        return whole
    positions = window - 1 + token_budget
    return min(whole, -(-(positions - 1) // page_tokens) + 1)


def page_bytes(
    streams: Items[Items[StreamSpec]], group: StreamGroup, dtype: str, page_tokens: int
) -> int:
    """Bytes of one page of a group.

    Args:
        streams: for each layer, the streams it keeps.
    """
    return sum(
        page_tokens // group.stride * streams[layer][index].entry_bytes(dtype)
        for layer, index in group.members
    )


def page_counts(
    groups: Items[StreamGroup],
    bytes_of: Items[int],
    memory: int,
    context_length: int,
    token_budget: int,
    page_tokens: int,
) -> tuple[int, ...]:
    """Pages of each group that together take at most `memory` bytes.

    First comes what one sequence of the full context length needs, or of the longest that there is
    memory for; what is left is divided in the proportions of sequences of usual length.

    Args:
        bytes_of: one page of each group.

    Raises:
        InsufficientMemoryError: not even one page of tokens has room.
    """

    def alone(runs: int) -> list[int]:
        length = min(context_length, runs * page_tokens)
        return [
            pages_per_sequence(group.window, length, token_budget, page_tokens) for group in groups
        ]

    def usual(runs: int) -> list[int]:
        length = min(_USUAL_TOKENS, context_length)
        shares = [
            pages_per_sequence(group.window, length, page_tokens, page_tokens) for group in groups
        ]
        return [
            each + runs * share // max(shares)
            for each, share in zip(alone(whole), shares, strict=True)
        ]

    def size(counts: list[int]) -> int:
        return sum(count * each for count, each in zip(counts, bytes_of, strict=True))

    whole = -(-context_length // page_tokens)
    count_for = usual if size(alone(whole)) <= memory else alone
    if size(alone(1)) > memory:
        raise InsufficientMemoryError(
            f"state_memory {memory}",
            f"is less than the state of {page_tokens} tokens takes, {size(alone(1))} bytes",
            "Give it more",
        )
    low, high = (0 if count_for is usual else 1), memory + 2
    while low < high - 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (middle, high) if size(count_for(middle)) <= memory else (low, middle)
    return tuple(count_for(low))


def longest_sequence(
    groups: Items[StreamGroup],
    counts: Items[int],
    context_length: int,
    token_budget: int,
    page_tokens: int,
) -> int:
    """Most tokens that one sequence can hold state for, with so many pages of each group."""

    def fits(length: int) -> bool:
        return all(
            pages_per_sequence(group.window, length, token_budget, page_tokens) <= count
            for group, count in zip(groups, counts, strict=True)
        )

    if fits(context_length):
        return context_length
    low, high = 0, -(-context_length // page_tokens)
    while low < high - 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * page_tokens) else (low, middle)
    return low * page_tokens
