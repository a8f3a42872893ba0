"""A stream's bookkeeping, and the estimates made of it, without any replica."""

from __future__ import annotations

import asyncio

import pytest

from firstlight.errors import RequestError
from firstlight.replica.messages import (
    LogProbability,
    Prompt,
    SequenceRequest,
    Start,
    Statistics,
    Token,
    TokenScore,
)
from firstlight.server.core_shares import core_shares
from firstlight.server.pace import Outputs, Speed, wait_for_room, wait_for_start
from firstlight.server.routed_stream import UNREAD_SCORES, RoutedStream
from firstlight.server.token_streams import PromptEvent, TokenEvent

SCORE = TokenScore(-1.0, [LogProbability(3, -1.0)])


def stream(request: SequenceRequest | None = None) -> RoutedStream:
    request = request or SequenceRequest([1, 2, 3], max_tokens=10)
    return RoutedStream(7, "m", request, lambda _: None, 0.0)


def begun(request: SequenceRequest | None = None) -> RoutedStream:
    new = stream(request)
    new.put_prompt(Prompt(7, 2))
    return new


def events(each: RoutedStream) -> list[PromptEvent | TokenEvent]:
    async def read() -> list[PromptEvent | TokenEvent]:
        return [event async for event in each]

    return asyncio.run(read())


def test_the_prompt_is_told_once_and_tokens_in_order() -> None:
    each = begun()
    assert each.put(Token(7, 0, 5))
    each.put_prompt(Prompt(7, 0))  # by the next replica
    assert each.start() == Start(7, each.request, [5])
    assert each.put(Token(7, 1, 6, "stop"))
    assert each.ended
    assert events(each) == [PromptEvent(2), TokenEvent(5), TokenEvent(6, "stop")]


@pytest.mark.parametrize("index", [0, 2])
def test_a_token_out_of_order_is_not_taken(index: int) -> None:
    each = begun()
    each.put(Token(7, 0, 5))
    assert not each.put(Token(7, index, 6))
    assert each.output_ids.tolist() == [5]
    assert not stream().put(Token(7, 0, 5))  # whose prompt has not come


def test_prompt_scores_are_not_computed_again_for_the_next_replica() -> None:
    request = SequenceRequest([1, 2], prompt_log_probabilities=1, log_probabilities=1)
    each = stream(request)
    assert each.start().request == request
    each.put_prompt(Prompt(7, 0, [SCORE]))
    assert each.start().request.prompt_log_probabilities is None
    assert each.start().request.log_probabilities == 1


def test_an_error_comes_after_what_came_before_it() -> None:
    each = begun()
    each.put(Token(7, 0, 5))
    each.fail(RequestError("x", "is wrong", "Change it"))
    seen: list[object] = []

    async def read() -> None:
        async for event in each:
            seen.append(event)

    with pytest.raises(RequestError, match="x: is wrong"):
        asyncio.run(read())
    assert seen == [PromptEvent(2), TokenEvent(5)]


def test_scores_that_nobody_reads_end_the_stream() -> None:
    cancelled = []
    each = RoutedStream(
        7, "m", SequenceRequest([1], log_probabilities=1), lambda it: cancelled.append(it), 0.0
    )
    each.put_prompt(Prompt(7, 0))
    for index in range(UNREAD_SCORES):
        assert each.put(Token(7, index, 3, None, SCORE))
    assert not each.ended
    assert each.put(Token(7, UNREAD_SCORES, 3, None, SCORE))
    assert each.ended and cancelled == [each]
    with pytest.raises(RequestError, match="wait to be read"):
        events(each)


def test_tokens_that_nobody_reads_take_little() -> None:
    each = begun()
    for index in range(100_000):
        each.put(Token(7, index, 200_000))
    assert each.output_ids.itemsize * len(each.output_ids) == 400_000
    assert not each._scores


def test_who_gains_nothing_while_replicas_end_is_suspected_then_convicted() -> None:
    each = begun()
    each.crashed(only_suspect=False)
    assert not each.suspect
    each.crashed(only_suspect=False)
    assert each.suspect and each.convictions == 0
    assert each.start().request.priority > 1 << 30  # to have it done with
    each.crashed(only_suspect=False)  # beside another suspect, which may have done it
    assert each.convictions == 0
    each.crashed(only_suspect=True)
    each.crashed(only_suspect=True)
    assert each.convictions == 2
    each.crashed(only_suspect=True, from_outside=True)
    assert 2 < each.convictions < 2.5
    each.put(Token(7, 0, 5))
    assert not each.suspect and each.convictions == 0
    each.crashed(only_suspect=False)
    each.put(Token(7, 1, 5))
    each.crashed(only_suspect=False)
    assert not each.suspect


def test_speed_is_of_late() -> None:
    speed = Speed()
    before = Statistics()
    for count in range(1, 200):
        now = Statistics(step_seconds=float(count), output_tokens=50 * count)
        speed.add(before, now)
        before = now
    assert speed.rate == pytest.approx(50.0)
    for _ in range(60):
        now = Statistics(
            step_seconds=before.step_seconds + 1, output_tokens=before.output_tokens + 10
        )
        speed.add(before, now)
        before = now
    assert speed.rate == pytest.approx(10.0, rel=0.05)
    cached = Statistics(step_seconds=1.0, prompt_tokens=500, cached_tokens=400)
    fresh = Speed()
    fresh.add(Statistics(), cached)
    assert fresh.rate == 100.0


def test_waiting_times_follow_from_what_is_left_and_the_speed() -> None:
    outputs = Outputs()
    waiting = [stream(SequenceRequest([1] * 100, max_tokens=20)) for _ in range(8)]
    # 8 times 120 tokens at 96 a second, all done in 10 s; one ends every 1.25 s on average.
    assert wait_for_start(waiting, outputs, 96.0) == pytest.approx(10.0)
    assert wait_for_room(waiting, outputs, 96.0) == 2.0
    for each in waiting:
        each.put_prompt(Prompt(7, 0))
    assert wait_for_start(waiting, outputs, 96.0) == 0.0
    assert wait_for_room(waiting, outputs, 1.0) == 20.0
    unlimited = stream(SequenceRequest([1]))
    for _ in range(200):
        outputs.add(40)
    assert outputs.left(unlimited) == pytest.approx(41.0, abs=0.1)
    assert wait_for_room([unlimited], outputs, 0.0) > 0  # nothing is known yet
    assert wait_for_room([], outputs, 5.0) == 1.0


def test_cores_are_shared_out() -> None:
    assert core_shares(["cpu"], [0, 1, 2, 3]) == [None]
    assert core_shares(["cpu", "numpy"], [0, 1, 2, 3, 4]) == [[0, 1, 2], [3, 4]]
    assert core_shares(["cpu", "webgpu", "cpu"], [4, 6]) == [[4], None, [6]]
    assert core_shares(["cpu", "cpu", "cpu"], [0, 1]) == [None] * 3
    assert core_shares(["cpu", "webgpu"], [0, 1]) == [None, None]
    assert core_shares(["cpu", "cpu"], []) == [None, None]
