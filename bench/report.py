"""What bench/run.py measured, as a table and as a chart."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from measure import CONTEXT

from firstlight.benchmark.step_cost import StepCost
from firstlight.host.ceilings import Ceilings

OWN = "firstlight"


def table(result: dict[str, Any]) -> str:
    """Medians as Markdown. The share is of the ceiling measured in the same round, the ratio
    firstlight's speed over the best peer's of the same round."""
    peers = _peers(result)
    lines = [
        f"{result['processor']}, {result['cores']} cores, {result['date']}, firstlight "
        f"{result['version']}; tokens/s, medians.",
        "",
        f"| model | task | {OWN} | share of ceiling | {' | '.join(peers)} | ratio to the best |",
        "| --- | --- | --- | --- |" + " --- |" * (len(peers) + 1),
    ]
    for name, rounds in result["models"].items():
        for task in rounds[0][OWN]["speeds"]:
            cells = [name, task, f"{_median(rounds, OWN, task):.1f}", f"{share(rounds, task):.0%}"]
            for peer in peers:
                speed = _median(rounds, peer, task)
                cells.append("" if speed is None else f"{speed:.1f}")
            found = ratio(rounds, task, peers)
            cells.append("" if found is None else f"{found:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", _ceilings_line(result)]
    return "\n".join(lines) + "\n"


def share(rounds: list[dict[str, Any]], task: str) -> float:
    """The least time that the ceilings allow, over the time taken."""
    return statistics.median(_least_seconds(one, task) * one[OWN]["speeds"][task] for one in rounds)


def ratio(rounds: list[dict[str, Any]], task: str, peers: list[str]) -> float | None:
    """Over the best peer, None where no peer has done the task."""
    found = []
    for one in rounds:
        speeds = [one[peer]["speeds"].get(task, 0.0) for peer in peers if peer in one]
        if any(speeds):
            found.append(one[OWN]["speeds"][task] / max(speeds))
    return statistics.median(found) if found else None


def _least_seconds(one: dict[str, Any], task: str) -> float:
    """Of one token: the greater of what memory and what arithmetic need.

    Memory reads weights once a step and the state of each sequence; products with weights run at
    the bfloat16 peak where there is one. Attention's own arithmetic is not counted.
    """
    own, found = one[OWN], one["ceilings"]
    kind, number = task.split()
    count = int(number)
    if kind == "start":  # no ceiling but the reading of the weights
        return float(own["weight_bytes"] / found["bandwidth"])
    operations = own["operations_a_token"]
    cost = StepCost(
        own["weight_bytes"],
        operations["inner"],
        operations["head"],
        own["state_bytes_a_token"],
        tuple((size, share) for size, share in own.get("experts", ())),
    )
    ceilings = Ceilings("", found["bandwidth"], found["matrix"])
    if kind == "prefill":
        return cost.prefill_seconds(count, 512, ceilings) / count
    if kind == "decode":
        return cost.decode_seconds(count, CONTEXT, ceilings) / count
    return cost.decode_seconds(1, count, ceilings)


def chart(result: dict[str, Any], path: Path) -> None:
    """Two panels of bars, one line a task: share of the ceiling, ratio to the best peer."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    peers = _peers(result)
    labels, shares, ratios = [], [], []
    for name, rounds in result["models"].items():
        for task in rounds[0][OWN]["speeds"]:
            labels.append(f"{name}, {task}")
            shares.append(100 * share(rounds, task))
            ratios.append(ratio(rounds, task, peers) or 0.0)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 1.2 + 0.26 * len(labels)), sharey=True, layout="constrained"
    )
    places = range(len(labels))
    left.barh(places, shares, color="#3a6ea5")
    left.axvline(100, color="black", linewidth=0.8)
    left.set_xlabel("share of the measured ceiling, %")
    left.set_yticks(places, labels)
    left.invert_yaxis()
    colours = ["#3a8f5c" if value >= 1 else "#b5523b" for value in ratios]
    right.barh(places, ratios, color=colours)
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xlabel(f"speed over the best of {', '.join(peers)}" if peers else "no peer measured")
    figure.suptitle(f"firstlight, {result['processor']}, {result['cores']} cores, {result['date']}")
    figure.savefig(path)


def _peers(result: dict[str, Any]) -> list[str]:
    found = {
        engine
        for rounds in result["models"].values()
        for one in rounds
        for engine in one
        if engine not in (OWN, "ceilings")
    }
    return sorted(found)


def _median(rounds: list[dict[str, Any]], engine: str, task: str) -> Any:
    speeds = [
        one[engine]["speeds"][task]
        for one in rounds
        if engine in one and task in one[engine]["speeds"]
    ]
    return statistics.median(speeds) if speeds else None


def _ceilings_line(result: dict[str, Any]) -> str:
    every = [one["ceilings"] for rounds in result["models"].values() for one in rounds]
    bandwidth = [each["bandwidth"] / 1e9 for each in every]
    parts = [f"Memory bandwidth {min(bandwidth):.1f} to {max(bandwidth):.1f} GB/s"]
    for kind in every[0]["matrix"]:
        peaks = [each["matrix"][kind] / 1e9 for each in every]
        parts.append(f"{kind} {min(peaks):.0f} to {max(peaks):.0f} GOP/s")
    return "; ".join(parts) + "."
