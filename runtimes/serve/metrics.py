"""What the server counts, in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ModelMetrics(NamedTuple):
    """What is observed of one model: parts that run together, and seconds in the queue, padding, running, encoding."""

    batch: Histogram
    queue: Histogram
    collate: Histogram
    run: Histogram
    encode: Histogram


class Metrics:
    """One registry of its own for each server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("mer_requests", "Requests by status", ["model", "route", "code"], **own)
        self.seconds = Histogram("mer_request_seconds", "Whole requests", ["route"], buckets=SECONDS, **own)
        self.reloads = Counter("mer_reloads", "Bundles that changed on disk", ["model", "result"], **own)
        self._batch = Histogram("mer_batch_size", "Parts that ran together", ["model"], buckets=SIZES, **own)
        self._stage = Histogram("mer_stage_seconds", "By stage", ["model", "stage"], buckets=SECONDS, **own)
        self._depth = Gauge("mer_queue_depth", "Parts that wait", ["model"], **own)
        self._foreign = Gauge(
            "mer_foreign_features", "1 where an input is not like in training", ["model", "input"], **own
        )

    def of(self, model: str) -> ModelMetrics:
        """Those that a model's workers observe."""
        stages = (self._stage.labels(model, stage) for stage in ModelMetrics._fields[1:])
        return ModelMetrics(self._batch.labels(model), *stages)

    def watch_depth(self, model: str, depth: Callable[[], int]) -> None:
        """Asks for the depth of a model's queue whenever somebody looks."""
        self._depth.labels(model).set_function(depth)

    def mark_foreign(self, model: str, inputs: Iterable[tuple[str, bool]]) -> None:
        """Which inputs of a model are not like in training."""
        for name, foreign in inputs:
            self._foreign.labels(model, name).set(foreign)

    def page(self) -> bytes:
        """All of them as text."""
        return generate_latest(self._registry)
