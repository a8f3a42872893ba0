"""DeepSeek-V4's state: chunked, shared, given back, cut and moved without changing a token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Sequence
from firstlight.model.decoder import Decoder
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import PAGE_TOKENS, logits, new_engine, run
from tests.support.tiny_engine import run_to_end
from tests.support.tiny_models import prompt

Tiny = Callable[..., TinyCheckpoint]

GREEDY = SamplingParameters()
DRAWN = SamplingParameters(temperature=0.8, top_p=0.95, seed=5)


@pytest.fixture
def decoder(tiny: Tiny) -> Decoder:
    return tiny("deepseek_v4").decoder("cpu")


def _undisturbed(
    decoder: Decoder, tokens: list[int], count: int, state: str = "float32"
) -> list[int]:
    return list(_text(decoder, tuple(tokens), count, state))


@cache
def _text(decoder: Decoder, tokens: tuple[int, ...], count: int, state: str) -> tuple[int, ...]:
    engine = Engine(decoder, 256, 1, 256, state, page_tokens=PAGE_TOKENS, prefix_caching=False)
    return tuple(run(engine, list(tokens), count))


# bfloat16 too: what an entry is made of is rounded when it is written, whenever that is.
@pytest.mark.parametrize(
    ("device", "state", "chunk"),
    [
        *(("cpu", state, chunk) for state in ("float32", "bfloat16") for chunk in (1, 15, 50)),
        ("numpy", "float32", 17),
        ("numpy", "bfloat16", 17),
        ("torch:cpu", "float32", 17),
    ],
)
def test_a_prompt_in_chunks_gives_the_same_tokens(
    tiny: Tiny, device: str, state: str, chunk: int
) -> None:
    decoder = tiny("deepseek_v4").decoder(device)
    expected = _undisturbed(decoder, prompt(), 40, state)
    engine = Engine(decoder, 256, 1, chunk, state, page_tokens=PAGE_TOKENS)
    assert run(engine, prompt(), 40) == expected


def test_chunks_and_company_change_no_bit_on_cpu(tiny: Tiny) -> None:
    decoder = tiny("deepseek_v4").decoder("cpu")
    expected = logits(decoder, prompt())
    for chunk in (1, 7, 33):
        np.testing.assert_array_equal(logits(decoder, prompt(), chunk), expected)
    engine = new_engine(decoder, 64, sequences=4)
    for seed in range(1, 4):
        engine.add(prompt(20 * seed, seed), DRAWN, StopConditions(max_tokens=60))
    for _ in range(5):
        engine.step()
    np.testing.assert_array_equal(engine.logits(prompt()), expected)


@pytest.mark.parametrize("length", [33, 48, 63, 89])
def test_a_prefix_from_the_cache_gives_the_same_tokens(decoder: Decoder, length: int) -> None:
    """Prefixes of several lengths, each found as far as its last whole page."""
    engine = new_engine(decoder, 40, sequences=2)
    run(engine, prompt(), 20)
    tokens = [*prompt()[:length], *prompt(9, seed=3)]
    sequence = engine.add(tokens, GREEDY, StopConditions(max_tokens=40))
    run_to_end(engine)
    assert sequence.cached_tokens == length // PAGE_TOKENS * PAGE_TOKENS
    assert list(sequence.output_ids) == _undisturbed(decoder, tokens, 40)


def test_who_gave_back_its_pages_goes_on_with_the_same_tokens(decoder: Decoder) -> None:
    engine = Engine(decoder, 128, 4, 48, page_tokens=PAGE_TOKENS)
    room = int(1.4 * sum(pages.nbytes for layer in engine._state for pages in layer) / 4)
    engine = Engine(decoder, 128, 4, 48, page_tokens=PAGE_TOKENS, state_memory=room)
    prompts = [prompt(9 + 7 * seed, seed) for seed in range(4)]
    sequences = [engine.add(each, GREEDY, StopConditions(max_tokens=60)) for each in prompts]
    run_to_end(engine)
    assert engine.statistics().preemptions > 0
    assert [list(each.output_ids) for each in sequences] == [
        _undisturbed(decoder, each, 60) for each in prompts
    ]
    assert engine.statistics().free_pages == engine.statistics().pages


def _cut(engine: Engine, sequence: Sequence, length: int) -> bool:
    """Forget all positions from `length` on; whether what lies before is still there."""
    if engine.pages.can_cut(sequence.pages, length):
        engine.pages.cut(sequence.pages, length)
        sequence.computed = length
        return True
    engine.scheduler.restart(sequence)
    return False


# In pages as long as the sequence nothing goes free that was seen once. In small ones what lies
# before the window does, and a sequence that is cut back further is computed anew.
@pytest.mark.parametrize(
    ("page_tokens", "back"),
    [*((256, back) for back in (*range(1, 19), 33, 69)), (16, 1), (16, 2), (16, 3), (16, 40)],
)
def test_cut_back_by_any_number_of_tokens(tiny: Tiny, page_tokens: int, back: int) -> None:
    """State of other tokens is computed in between, so that what is wrong must be overwritten."""
    decoder = tiny("deepseek_v4").decoder("cpu")
    expected = _undisturbed(decoder, prompt(30), 60)
    engine = Engine(decoder, 256, 1, 24, page_tokens=page_tokens, prefix_caching=False)
    sequence = engine.add(prompt(30), GREEDY, StopConditions(max_tokens=60))
    while sequence.computed < 70:
        engine.step()
    right = list(sequence.token_ids)
    length = 70 - back
    _cut(engine, sequence, length)
    wrong = [(token + 1) % 157 for token in right[length:70]]
    sequence.token_ids[length:] = [*wrong, 5]
    sequence.output_ids[:] = sequence.token_ids[30:]
    while sequence.computed < 70:
        engine.step()
    assert sequence.token_ids[:71] != right[:71]
    # Position 70 needs 64 and later ones of runs of 4, position 67 from 60 on.
    assert _cut(engine, sequence, length) == (page_tokens == 256 or back < 3)
    sequence.token_ids[length:] = right[length:]
    sequence.output_ids[:] = right[30:]
    run_to_end(engine)
    assert list(sequence.output_ids) == expected


class Guesses:
    """Right tokens and wrong ones, so that a few guesses are taken each time."""

    def __init__(self, text: list[int]) -> None:
        self._text = text

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        right = self._text[sequence.length : sequence.length + count]
        taken = sequence.length // 2 % (count + 1)
        return [*right[:taken], *((token + 1) % 157 for token in right[taken:])]


@pytest.mark.parametrize("count", [1, 4, 9, 20])
def test_guesses_that_are_wrong_leave_nothing_behind(decoder: Decoder, count: int) -> None:
    expected = _undisturbed(decoder, prompt(30), 70)
    engine = Engine(
        decoder,
        256,
        1,
        64,
        page_tokens=PAGE_TOKENS,
        speculation=count,
        proposer=Guesses([*prompt(30), *expected]),
    )
    assert run(engine, prompt(30), 70) == expected
    done = engine.statistics()
    assert done.proposed_tokens > done.accepted_tokens > 0
    assert done.preemptions == 0


@pytest.mark.parametrize("count", [0, 1, 2, 17, 34, 49, 50])
def test_resumed_elsewhere_it_is_the_same_text(decoder: Decoder, count: int) -> None:
    engine = Engine(decoder, 256, page_tokens=PAGE_TOKENS)
    expected = run(engine, prompt(47), 50, DRAWN)
    other = Engine(decoder, 256, 1, 19, page_tokens=48)
    sequence = other.add(
        prompt(47), DRAWN, StopConditions(max_tokens=50), output_ids=expected[:count]
    )
    run_to_end(other)
    assert list(sequence.output_ids) == expected


def test_state_in_bfloat16_is_close(tiny: Tiny) -> None:
    decoder = tiny("deepseek_v4").decoder("cpu")
    exact = logits(decoder, prompt())
    engine = Engine(decoder, 256, 1, 50, "bfloat16", page_tokens=PAGE_TOKENS)
    error = np.abs(engine.logits(prompt()) - exact)
    assert error.max() > 1e-4
    # A rounded index key may have another entry chosen, so that not every token is near.
    assert np.median(error.max(axis=1)) < 0.1 * np.abs(exact).max()
