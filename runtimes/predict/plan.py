"""A plan of length buckets: what is expected of each, and the batch sizes that a predictor takes from it."""

from __future__ import annotations

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
