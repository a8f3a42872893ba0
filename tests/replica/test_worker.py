"""A worker over the tiny engine: what it says of each step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sampler import log_probabilities
from firstlight.replica.messages import Sampling, SequenceRequest, Start, Steps, Token
from firstlight.replica.worker import Worker
from tests.support.tiny_engine import (
    CONTEXT_LENGTH,
    PAGE_TOKENS,
    VOCABULARY,
    free_pages,
    prompt_of,
    shared_decoder,
    tiny_engine,
    tokens_alone,
)

PROMPT = prompt_of(9)
GREEDY = SequenceRequest(PROMPT, max_tokens=16)
SEEDED = SequenceRequest(
    PROMPT,
    Sampling(temperature=1.5, top_k=40, top_p=0.95, presence_penalty=0.5, seed=7),
    max_tokens=16,
)
SEEDED_PARAMETERS = SamplingParameters(1.5, 40, 0.95, presence_penalty=0.5, seed=7)


def work(worker: Worker) -> list[Steps]:
    """All there is to do."""
    steps = []
    while worker.busy:
        step = worker.step()
        assert step is not None
        steps.append(step)
        assert len(steps) < 1000
    return steps


def tokens_of(steps: list[Steps], number: int) -> list[Token]:
    tokens = [token for each in steps for token in each.tokens if token.sequence == number]
    assert all(later.index == token.index + 1 for token, later in pairwise(tokens))
    return tokens


def test_prompt_first_then_every_token_once() -> None:
    worker = Worker(tiny_engine(sequences=4))
    worker.start(Start(11, GREEDY))
    worker.start(Start(12, SEEDED))
    steps = work(worker)
    for number, parameters in ((11, SamplingParameters()), (12, SEEDED_PARAMETERS)):
        tokens = tokens_of(steps, number)
        assert [token.token_id for token in tokens] == tokens_alone(PROMPT, parameters)
        assert tokens[0].index == 0
        assert [token.finish for token in tokens] == [None] * 15 + ["length"]
        prompts = [each for step in steps for each in step.prompts if each.sequence == number]
        assert len(prompts) == 1
    assert steps[-1].statistics.output_tokens == 32
    assert steps[-1].statistics.prompt_tokens == 18
    assert steps[-1].statistics.running == 0


@pytest.mark.parametrize("request_", [GREEDY, SEEDED])
@pytest.mark.parametrize("done", [1, 7, 15])
def test_a_sequence_goes_on_where_another_replica_left_it(
    request_: SequenceRequest, done: int
) -> None:
    first = Worker(tiny_engine())
    first.start(Start(1, request_))
    whole = tokens_of(work(first), 1)
    second = Worker(tiny_engine())
    second.start(Start(1, request_, [token.token_id for token in whole[:done]]))
    assert tokens_of(work(second), 1) == whole[done:]


def test_guessed_tokens_that_come_together_are_told_one_by_one() -> None:
    prompt = [5, 6, 7, 8] * 6
    engine = Engine(
        shared_decoder(), CONTEXT_LENGTH, 1, page_tokens=PAGE_TOKENS, speculation="auto"
    )
    worker = Worker(engine)
    worker.start(Start(3, SequenceRequest(prompt, max_tokens=30)))
    tokens = tokens_of(work(worker), 3)
    assert [token.token_id for token in tokens] == tokens_alone(
        prompt, stop=StopConditions(max_tokens=30)
    )
    assert [token.index for token in tokens] == list(range(30))
    assert [token.finish for token in tokens] == [None] * 29 + ["length"]


def test_cancelling_frees_pages_at_once_and_says_nothing_more() -> None:
    engine = tiny_engine(sequences=2)
    free = free_pages(engine)
    worker = Worker(engine)
    worker.start(Start(1, GREEDY))
    worker.start(Start(2, SequenceRequest(prompt_of(20), max_tokens=16)))
    worker.step()
    assert worker.statistics().running == 2
    worker.cancel(1)
    worker.cancel(1)
    worker.cancel(99)
    assert worker.statistics().running == 1
    steps = work(worker)
    assert not tokens_of(steps, 1)
    assert len(tokens_of(steps, 2)) > 0
    assert free_pages(engine) == free
    assert not worker.busy


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (SequenceRequest([]), "RequestError", "no tokens"),
        (SequenceRequest([1] * (CONTEXT_LENGTH + 1)), "RequestError", "65 tokens"),
        (SequenceRequest([1], Sampling(top_p=0.0)), "RequestError", "leaves no token"),
        (SequenceRequest([1], priority=1 << 40), "RequestError", str(1 << 40)),
    ],
)
def test_a_wrong_request_is_refused_and_no_other_is_touched(
    request_: SequenceRequest, kind: str, words: str
) -> None:
    worker = Worker(tiny_engine(sequences=2))
    worker.start(Start(1, request_))
    worker.start(Start(2, GREEDY))
    steps = work(worker)
    (refusal,) = [each for step in steps for each in step.refusals]
    assert (refusal.sequence, refusal.kind) == (1, kind)
    assert words in refusal.reason and refusal.remedy
    assert len(tokens_of(steps, 2)) == 16


def test_a_sequence_that_fails_later_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(sequences=2)
    worker = Worker(engine)
    worker.start(Start(1, SequenceRequest(PROMPT, Sampling(logit_bias={3: 1.0}), max_tokens=16)))
    worker.start(Start(2, GREEDY))
    worker.step()
    # As if its logits had come to be no distribution.
    sequence = worker._sequences[1]
    monkeypatch.setattr(sequence, "sampling", SamplingParameters(logit_bias={VOCABULARY + 5: 1.0}))
    steps = work(worker)
    (refusal,) = [each for step in steps for each in step.refusals]
    assert refusal.sequence == 1 and "logit_bias" in refusal.subject
    assert tokens_of(steps, 2)[-1].finish == "length"


def test_log_probabilities_are_the_engines_own() -> None:
    worker = Worker(tiny_engine())
    worker.start(
        Start(
            1,
            SequenceRequest(PROMPT, max_tokens=3, log_probabilities=2, prompt_log_probabilities=1),
        )
    )
    steps = work(worker)
    tokens = tokens_of(steps, 1)
    (prompt,) = [each for step in steps for each in step.prompts]
    text = [*PROMPT, *(token.token_id for token in tokens)]
    expected = log_probabilities(tiny_engine().logits(text))
    assert prompt.scores is not None
    scores = [*prompt.scores, *(token.score for token in tokens)]
    assert len(scores) == len(text) - 1
    for row, token_id, each in zip(expected, text[1:], scores, strict=False):
        assert each is not None
        assert each.log_probability == pytest.approx(float(row[token_id]), abs=1e-5)
        assert each.likeliest[0].token_id == int(np.argmax(row))
    assert [len(each.likeliest) for each in scores if each] == [1] * 8 + [2] * 3


def test_a_prompt_alone() -> None:
    worker = Worker(tiny_engine())
    worker.start(Start(1, SequenceRequest(PROMPT, max_tokens=0)))
    worker.start(Start(2, SequenceRequest(PROMPT, max_tokens=0, prompt_log_probabilities=0)))
    steps = work(worker)
    prompts = {each.sequence: each for step in steps for each in step.prompts}
    assert prompts[1].finish == prompts[2].finish == "length"
    assert prompts[1].scores is None
    assert prompts[2].scores is not None and len(prompts[2].scores) == len(PROMPT) - 1
    assert not tokens_of(steps, 1) and not tokens_of(steps, 2)


def test_nothing_is_said_of_nothing() -> None:
    worker = Worker(tiny_engine())
    assert not worker.busy
    assert worker.step() is None
