"""What `firstlight bench` measured, as tables for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firstlight.cli.columns import aligned

if TYPE_CHECKING:
    from firstlight.benchmark.load import LoadResult
    from firstlight.benchmark.model_speed import Speed, Throughput


def speed_table(speeds: list[Speed]) -> str:
    """A line a figure."""
    rows = [["", "tokens/s", "of ceiling"]]
    rows += [
        [each.name, f"{each.tokens_per_second:.1f}", f"{each.ceiling_share:.0%}"] for each in speeds
    ]
    return aligned(rows, left=(0,))


def load_table(
    results: list[LoadResult], labels: list[str], shares: list[Throughput] | None = None
) -> str:
    """A line a load; waits in milliseconds, shares where they are given."""
    head = ["at once", "failed", "requests/s", "tokens/s"]
    head += ["first token p50", "p99", "between p50", "p90", "p99", "whole p50", "p99"]
    rows = [head + (["of ceiling"] if shares else [])]
    for index, (label, result) in enumerate(zip(labels, results, strict=True)):
        waits = (
            result.first_token.p50,
            result.first_token.p99,
            result.between_tokens.p50,
            result.between_tokens.p90,
            result.between_tokens.p99,
            result.whole.p50,
            result.whole.p99,
        )
        row = [label, f"{result.failed}/{result.requests}"]
        row += [f"{result.requests_per_second:.2f}", f"{result.output_tokens_per_second:.1f}"]
        row += [f"{1e3 * wait:.0f}" for wait in waits]
        rows.append(row + ([f"{shares[index].ceiling_share:.0%}"] if shares else []))
    return aligned(rows, left=(0,))
