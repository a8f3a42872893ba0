"""What Prometheus is told (text format 0.0.4): of requests by us, of replicas by the router."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from firstlight.server.token_streams import ReplicaStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. From a small model's step to a long prompt on a slow machine.
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# Name, help, is it a total, attribute of `Statistics`.
_STATISTICS = (
    ("running", "Sequences that hold pages.", False, "running"),
    ("waiting", "Sequences that hold no pages yet.", False, "waiting"),
    ("pages", "Pages of state.", False, "pages"),
    ("free_pages", "Pages that are free, those with a prefix to use again included.", False,
     "free_pages"),
    ("steps", "Steps computed.", True, "steps"),
    ("step_seconds", "Time that steps took.", True, "step_seconds"),
    ("prompt_tokens", "Tokens of prompts taken in.", True, "prompt_tokens"),
    ("cached_tokens", "Tokens of prompts whose state was there already.", True, "cached_tokens"),
    ("output_tokens", "Tokens chosen.", True, "output_tokens"),
    ("preemptions", "Sequences whose pages were taken for others.", True, "preemptions"),
    ("proposed_tokens", "Tokens proposed by speculation.", True, "proposed_tokens"),
    ("accepted_tokens", "Proposed tokens that were right.", True, "accepted_tokens"),
)  # fmt: skip


class Metrics:
    """Counts and times of requests.

    Attributes:
        first_token: seconds from a request to its first token, by model.
        between_tokens: seconds between two tokens of a choice, by model.
    """

    def __init__(self, replicas: Callable[[], list[ReplicaStatus]]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "firstlight_requests", "Requests answered.", ("path", "status"), registry=self._registry
        )
        self.request_seconds = Histogram(
            "firstlight_request_seconds", "From a request to the end of its answer.", ("path",),
            buckets=_WAITS, registry=self._registry,
        )  # fmt: skip
        self.open_requests = Gauge(
            "firstlight_open_requests", "Requests being answered.", registry=self._registry
        )
        self.connections = Gauge(
            "firstlight_connections", "Connections open.", registry=self._registry
        )
        self.first_token = Histogram(
            "firstlight_time_to_first_token_seconds", "From a request to its first token.",
            ("model",), buckets=_WAITS, registry=self._registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "firstlight_time_between_tokens_seconds", "Between two tokens of a choice.",
            ("model",), buckets=_GAPS, registry=self._registry,
        )  # fmt: skip
        self.tokens = Counter(
            "firstlight_tokens", "Tokens of requests: prompt, cached (of the prompt) or output.",
            ("model", "kind"), registry=self._registry,
        )  # fmt: skip
        self._registry.register(_Replicas(replicas))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Replicas(Collector):
    """Asks the router when Prometheus asks us."""

    def __init__(self, replicas: Callable[[], list[ReplicaStatus]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        replicas = self._replicas()
        for name, text, total, attribute in _STATISTICS:
            values = [float(getattr(each.statistics, attribute)) for each in replicas]
            yield _family(name, text, total, replicas, values)
        yield _family(
            "restarts", "Times it was started again.", True, replicas,
            [float(each.restarts) for each in replicas],
        )  # fmt: skip
        yield _family(
            "failovers", "Sequences that went on elsewhere, or here after a restart.", True,
            replicas, [float(each.moved) for each in replicas],
        )  # fmt: skip
        yield _family(
            "ready", "Whether it takes requests.", False, replicas,
            [float(each.state == "ready") for each in replicas],
        )  # fmt: skip


def _family(
    name: str, text: str, total: bool, replicas: list[ReplicaStatus], values: list[float]
) -> Metric:
    kind = CounterMetricFamily if total else GaugeMetricFamily
    family = kind(f"firstlight_replica_{name}", text, labels=("replica", "model", "device"))
    for each, value in zip(replicas, values, strict=True):
        family.add_metric((each.name, each.model, each.device), value)
    return family
