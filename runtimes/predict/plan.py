"""A plan of length buckets: what is expected of each, and the batch sizes that a predictor takes from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

from pydantic import Field

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Strict
from mer_export.markdown import table
from mer_export.report import Report


class Timing(Strict):
    """One shape: milliseconds per call."""

    lengths: Bucket
    batch: int
    ms: float


class PlannedBucket(Strict):
    """A planned bucket. `share` is the part of all items, `padding` the part of its steps that is padding."""

    lengths: Bucket
    batch: int
    share: float
    padding: float
    item_ms: float


class Plan(Report):
    """The buckets, the expected milliseconds per item, and those with one bucket for all."""

    source: str
    items: int
    measured: str
    """What was timed."""
    buckets: list[PlannedBucket]
    expected_ms: float
    one_bucket_ms: float
    timings: list[Timing] = Field(default_factory=list)

    @classmethod
    def path(cls) -> str:
        return "reports/plan.json"

    @classmethod
    def command(cls) -> str:
        return "mer export --plan"

    def page(self) -> str:
        return markdown(self)

    @property
    def gain(self) -> float:
        return self.one_bucket_ms / self.expected_ms


FEW, HALF = 16, 0.5
"""Items from which on their filling is judged, and the part of their steps below which buckets are planned better."""


class Filling:
    """How much of their buckets items fill, from any number of threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._items, self._real, self._steps = 0, Counter[str](), Counter[str]()

    def add(self, lengths: Sequence[Mapping[str, int]], bucket: Mapping[str, int], dims: Iterable[str]) -> None:
        """Items of these real lengths that ran in a bucket; `dims` are those whose length items decide."""
        with self._lock:
            self._items += len(lengths)
            for dim in dims:
                self._real[dim] += sum(own[dim] for own in lengths)
                self._steps[dim] += len(lengths) * bucket[dim]

    def advice(self, where: object) -> str | None:
        """What to do in one line where most of the steps were padding; None where they were not, or for a few items."""
        padded = self._steps.total() - self._real.total()
        if self._items < FEW or padded <= HALF * self._steps.total():
            return None
        sizes = [
            f"{round(n / self._items)} of {round(self._steps[d] / self._items)} {d}" for d, n in self._real.items()
        ]
        return (
            f"items fill {', '.join(sizes)} on average, the rest is padding that costs time: "
            f"`mer export {where} --plan DATA` makes buckets for such items"
        )


def planned_batches(bundle: Bundle) -> dict[Bucket, int]:
    """The planned batch size of each bucket; empty without a plan."""
    plan = Plan.load(bundle)
    return {b.lengths: b.batch for b in plan.buckets} if plan else {}


def markdown(plan: Plan) -> str:
    """The plan as a table."""
    rows = [(b.lengths.name, b.batch, f"{b.share:.0%}", f"{b.padding:.0%}", f"{b.item_ms:.2f}") for b in plan.buckets]
    count = f"{len(plan.buckets)} bucket{'s' if len(plan.buckets) > 1 else ''}"
    lines = [
        *table(("bucket", "batch", "of the data", "padding", "ms per item"), rows),
        "",
        f"{plan.items} items of {plan.source}; cost measured with {plan.measured}. {count}: {plan.expected_ms:.2f} ms "
        f"per item expected, {plan.one_bucket_ms:.2f} ms with one bucket for all: {plan.gain:.2f} x.",
    ]
    return "\n".join(lines)
