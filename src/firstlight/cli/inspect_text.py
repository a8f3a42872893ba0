"""The report of `firstlight inspect` as people read it."""

from __future__ import annotations

from typing import Any

from firstlight.engine.memory_plan import gibibytes


def report_text(report: dict[str, Any]) -> str:
    """Several lines for a person."""
    shares = ", ".join(
        f"{name} {size / max(1, report['bytes']):.0%}" for name, size in report["formats"].items()
    )
    place = report["location"]
    if report["headers_from"]:
        place += f" (headers only, from {report['headers_from']})"
    rows = [
        ("model", place),
        ("family", report["family"] or "unknown"),
        ("files", f"{report['files']} ({report['layout']}), {gibibytes(report['bytes'])}"),
        ("parameters", f"{report['parameters']:,} in {report['tensors']} tensors"),
        ("weights", shares),
        ("licence", report["licence"] or "not stated in the files"),
    ]
    if report["family"]:
        rows += _architecture(report)
    rows.append(("tokenizer", _tokenizer(report)))
    lines = [f"{name:<12}{value}" for name, value in rows]
    if report.get("memory"):
        lines += ["", *_memory_table(report)]
    lines += ["", f"{'runs here':<12}{_verdict(report)}"]
    if "digests" in report:
        lines += ["", *(f"{digest}  {name}" for name, digest in report["digests"].items())]
        lines.append(
            "SHA-256, computed now"
            if report["digests_computed"]
            else f"SHA-256 as {report['headers_from']} states it; the files were not downloaded"
        )
    return "\n".join(lines)


def _verdict(report: dict[str, Any]) -> str:
    if not report["runs"]:
        return f"no. {report['why']}"
    if report["headers_from"]:
        return f"yes, {report['how']}, after a download of {gibibytes(report['bytes'])}"
    return f"yes, {report['how']}"


def _tokenizer(report: dict[str, Any]) -> str:
    if report["tokenizer_size"] is None:
        return "none that firstlight reads: it takes token ids only, through Python"
    kind = "with a chat template" if report["chat"] else "no chat template: a base model"
    return f"{report['tokenizer_size']:,} tokens, {kind}"


def _architecture(report: dict[str, Any]) -> list[tuple[str, str]]:
    layers = str(report["layers"])
    if report["sliding_layers"]:
        layers += (
            f", {report['sliding_layers']} of them with a window of {report['sliding_window']}"
        )
    heads = f"{report['heads']} of {report['head_size']}"
    if report["latent_size"]:
        heads += f", over one latent of {report['latent_size']}"
        if report["selected_positions"]:
            heads += f", at {report['selected_positions']:,} positions that an indexer selects"
    elif report["key_value_heads"] != report["heads"]:
        heads += f", {report['key_value_heads']} for keys and values"
    experts = []
    if report.get("experts"):
        chosen = f"{report['experts']}, of which a token goes to {report['experts_per_token']}"
        shared = ", and to a shared one" if report["shared_expert"] else ""
        layers_with = f" (in {report['expert_layers']} layers)"
        experts = [
            ("experts", chosen + shared + layers_with),
            ("active", f"{report['active_parameters']:,} parameters for each token"),
        ]
    tied = ", tied to the output head" if report["tied_embeddings"] else ""
    return [
        ("layers", layers),
        ("heads", heads),
        *experts,
        ("width", f"{report['hidden_size']:,}"),
        ("vocabulary", f"{report['vocabulary_size']:,}{tied}"),
        ("context", f"{report['context_length']:,} tokens"),
        *(("note", note) for note in report["notes"]),
    ]


def _memory_table(report: dict[str, Any]) -> list[str]:
    lines = [f"{'memory at':<12}{'weights':>12}{'state':>12}{'in all':>12}"]
    for plan in report["memory"]:
        lines.append(
            f"{plan['context_length']:<12,}{gibibytes(plan['weights']):>12}"
            f"{gibibytes(plan['state']):>12}{gibibytes(plan['total']):>12}"
        )
    return lines
