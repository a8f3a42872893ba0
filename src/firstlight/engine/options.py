"""What an engine can be told, checked before there is one."""

from __future__ import annotations

from firstlight.engine.parameters import check_whole
from firstlight.engine.speculation import Speculation, check_speculation
from firstlight.errors import RequestError
from firstlight.model.stream import VALUE_BYTES

PAGE_TOKENS = 64
TOKEN_BUDGET = 512
PROMPT_BUDGET = 64


def check_options(
    context_length: int,
    sequences: int,
    token_budget: int,
    state_dtype: str,
    *,
    state_memory: int | None = None,
    prompt_budget: int = PROMPT_BUDGET,
    speculation: Speculation = "off",
) -> None:
    """RequestError where no engine could be made with these."""
    check_whole("context_length", context_length, 1, 1 << 62)
    check_whole("sequences", sequences, 1, 1 << 62)
    check_whole("token_budget", token_budget, 1, 1 << 62)
    check_whole("prompt_budget", prompt_budget, 1, 1 << 62)
    if state_memory is not None:
        check_whole("state_memory", state_memory, 1, 1 << 62)
    check_speculation(speculation)
    if state_dtype not in VALUE_BYTES:
        raise RequestError(
            f"state {state_dtype!r}",
            "keys and values cannot be kept in it",
            f"Use one of: {', '.join(VALUE_BYTES)}",
        )
