"""What stands between <think> and </think> is split off, however it comes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import firstlight
from firstlight.server.output_text import Reasoning
from tests.support.http_server import serving, texts_of
from tests.support.tiny_chat import TEMPLATE, write_chat_model
from tests.support.token_sources import ScriptedSource


def split(text: str, cuts: list[int], reasoning: Reasoning) -> tuple[str, str]:
    thoughts = answer = ""
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, stop in itertools.pairwise(edges):
        more_thoughts, more = reasoning.push(text[start:stop])
        thoughts, answer = thoughts + more_thoughts, answer + more
    more_thoughts, more = reasoning.finish()
    return thoughts + more_thoughts, answer + more


CASES = [
    ("start", "<think>\nHmm.</think>\n\nYes.", ("Hmm.", "Yes.")),
    ("start", "\n <think>a<b</thin</think>c</think>d", ("a<b</thin", "c</think>d")),
    ("start", "No thoughts <think>here</think>", ("", "No thoughts <think>here</think>")),
    ("start", "<think></think>x", ("", "x")),
    ("start", "<think>cut off </thi", ("cut off </thi", "")),
    ("start", "<thin", ("", "<thin")),
    ("start", "  ", ("", "  ")),
    ("start", "", ("", "")),
    ("start", "<thinking>x", ("", "<thinking>x")),
    ("inside", "\nopened by the prompt</think>\nx\n", ("opened by the prompt", "x\n")),
    ("inside", "never closed", ("never closed", "")),
]


@pytest.mark.parametrize(("state", "text", "wanted"), CASES)
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=60))
def test_however_it_is_cut(state: Any, text: str, wanted: tuple[str, str], cuts: list[int]) -> None:
    assert split(text, cuts, Reasoning(state)) == wanted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("opened", [False, True])
def test_through_the_server(tmp_path: Path, stream: bool, opened: bool) -> None:
    template = TEMPLATE.replace("<|assistant|>", "<|assistant|><think>\n") if opened else TEMPLATE
    folder = write_chat_model(tmp_path, template=template)
    tokenizer = firstlight.load(folder, "numpy", cache=False).tokenizer
    assert tokenizer is not None
    said = "Let me see: stop.\n</think>\n\nFor<ty> two. stop it"
    ids = tokenizer.encode(said if opened else f"<think>{said}")
    source = ScriptedSource("thinker", ids)
    with (
        serving(source, texts_of("thinker", tokenizer)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        # A stop string is looked for in the answer alone.
        asked: Any = {
            "model": "thinker",
            "messages": [{"role": "user", "content": "?"}],
            "stop": "stop",
        }
        if stream:
            thoughts = answer = ""
            for chunk in client.chat.completions.create(**asked, stream=True):
                delta = chunk.choices[0].delta
                thoughts += getattr(delta, "reasoning_content", None) or ""
                answer += delta.content or ""
        else:
            whole = client.chat.completions.create(**asked)
            message: Any = whole.choices[0].message
            thoughts, answer = message.reasoning_content, message.content
            assert whole.usage is not None
            details = whole.usage.completion_tokens_details
            assert details is not None and details.reasoning_tokens is not None
            # One token a byte: the thoughts and most of the marker.
            assert abs(details.reasoning_tokens - len("Let me see: stop.\n</think>")) <= 8
    assert (thoughts, answer) == ("Let me see: stop.\n", "For<ty> two. ")


def test_no_thoughts_no_field(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=2
    )
    assert "reasoning_content" not in answer.choices[0].message.model_fields_set
