"""Arguments to try every op of the contract with: seeded, small, and awkward on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from firstlight.verify.cases.attention import attention_cases, stream_write_cases
from firstlight.verify.cases.base import Case, StreamArgument
from firstlight.verify.cases.blocks import (
    attention_block_cases,
    feed_forward_block_cases,
    logits_cases,
)
from firstlight.verify.cases.choosing import (
    choose_tokens_cases,
    likeliest_tokens_cases,
    token_log_probabilities_cases,
)
from firstlight.verify.cases.compressed import (
    compressed_attention_cases,
    pool_runs_cases,
    select_runs_cases,
)
from firstlight.verify.cases.elementwise import (
    add_cases,
    gate_cases,
    layer_norm_cases,
    rms_norm_cases,
    rotary_cases,
    scale_cases,
    soft_cap_cases,
    take_rows_cases,
)
from firstlight.verify.cases.experts import (
    add_rows_cases,
    attention_with_sinks_cases,
    clamped_gate_cases,
    experts_block_cases,
    route_cases,
)
from firstlight.verify.cases.hyper_connections import (
    collapse_streams_cases,
    connection_weights_cases,
    expand_streams_cases,
)
from firstlight.verify.cases.latent import (
    expanded_latent_attention_cases,
    head_linear_cases,
    join_columns_cases,
    latent_attention_block_cases,
    latent_attention_cases,
    take_columns_cases,
)
from firstlight.verify.cases.linear import embed_cases, linear_cases
from firstlight.verify.cases.selection import (
    select_positions_cases,
    selected_latent_attention_cases,
    sparse_latent_attention_block_cases,
)

_CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "add": add_cases,
    "add_rows": add_rows_cases,
    "attention": attention_cases,
    "attention_block": attention_block_cases,
    "attention_with_sinks": attention_with_sinks_cases,
    "choose_tokens": choose_tokens_cases,
    "clamped_gate": clamped_gate_cases,
    "collapse_streams": collapse_streams_cases,
    "compressed_attention": compressed_attention_cases,
    "connection_weights": connection_weights_cases,
    "embed": embed_cases,
    "experts_block": experts_block_cases,
    "expand_streams": expand_streams_cases,
    "expanded_latent_attention": expanded_latent_attention_cases,
    "feed_forward_block": feed_forward_block_cases,
    "gate": gate_cases,
    "head_linear": head_linear_cases,
    "join_columns": join_columns_cases,
    "latent_attention": latent_attention_cases,
    "latent_attention_block": latent_attention_block_cases,
    "layer_norm": layer_norm_cases,
    "likeliest_tokens": likeliest_tokens_cases,
    "linear": linear_cases,
    "logits": logits_cases,
    "pool_runs": pool_runs_cases,
    "rms_norm": rms_norm_cases,
    "rotary": rotary_cases,
    "route": route_cases,
    "scale": scale_cases,
    "select_entries": lambda: chain(select_positions_cases(), select_runs_cases()),
    "selected_latent_attention": selected_latent_attention_cases,
    "soft_cap": soft_cap_cases,
    "sparse_latent_attention_block": sparse_latent_attention_block_cases,
    "stream_write": stream_write_cases,
    "take_columns": take_columns_cases,
    "take_rows": take_rows_cases,
    "token_log_probabilities": token_log_probabilities_cases,
}


def cases_of(op: str) -> tuple[Case, ...]:
    """Every case of the op of that name; none if there are none."""
    return tuple(_CASES[op]()) if op in _CASES else ()


__all__ = ["Case", "StreamArgument", "cases_of"]
