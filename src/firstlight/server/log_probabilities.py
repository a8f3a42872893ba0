"""Log probabilities as OpenAI's two APIs write them."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.replica.messages import TokenScore
from firstlight.server.response_bodies import TextLogprobs, TokenLogprob, TopLogprob

_LEAST = -9999.0  # JSON has no infinity; OpenAI's value for what cannot come


def chat_entry(tokenizer: Tokenizer, token_id: int, score: TokenScore) -> TokenLogprob:
    """A token of a chat's answer."""
    data = tokenizer.token_bytes(token_id)
    return TokenLogprob(
        data.decode("utf-8", "replace"),
        _finite(score.log_probability),
        list(data),
        [_alternative(tokenizer, each.token_id, each.log_probability) for each in score.likeliest],
    )


def _alternative(tokenizer: Tokenizer, token_id: int, value: float) -> TopLogprob:
    data = tokenizer.token_bytes(token_id)
    return TopLogprob(data.decode("utf-8", "replace"), _finite(value), list(data))


def empty_text_logprobs(alternatives: int) -> TextLogprobs:
    """To be filled by `add_text_entry`; `alternatives` may be 0, and then there are none."""
    return TextLogprobs([], [], [] if alternatives else None, [])


def add_text_entry(
    logprobs: TextLogprobs,
    tokenizer: Tokenizer,
    token_id: int,
    score: TokenScore | None,
    offset: int,
) -> None:
    """Add a token of a completion, or of its prompt, that begins at `offset` in the text."""
    logprobs.tokens.append(token_text(tokenizer, token_id))
    logprobs.token_logprobs.append(None if score is None else _finite(score.log_probability))
    logprobs.text_offset.append(offset)
    if logprobs.top_logprobs is None:
        return
    if score is None:
        logprobs.top_logprobs.append(None)
        return
    likeliest: dict[str, float] = {}
    for each in score.likeliest:  # of tokens with the same text, the likeliest counts
        text = token_text(tokenizer, each.token_id)
        likeliest.setdefault(text, _finite(each.log_probability))
    logprobs.top_logprobs.append(likeliest)


def prompt_logprobs(
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    scores: Sequence[TokenScore],
    alternatives: int,
) -> TextLogprobs:
    """Entries of an echoed prompt; `scores` are of all its tokens but the first."""
    logprobs = empty_text_logprobs(alternatives)
    stream = tokenizer.stream()
    offset = 0
    for token_id, score in zip(prompt_ids, [None, *scores], strict=True):
        add_text_entry(logprobs, tokenizer, token_id, score, offset)
        offset += len(stream.push(token_id))
    return logprobs


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text; where it is no whole characters, its bytes as "bytes:\\\\xf0\\\\x9f"."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(value: float) -> float:
    return max(value, _LEAST) if value == value else _LEAST
