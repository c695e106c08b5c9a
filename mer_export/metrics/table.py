"""Every metric by name. Each stands beside the code that computes it; to add one, change that file only."""

from __future__ import annotations

from mer_export.errors import UsageError
from mer_export.metrics import classification, multilabel, sentiment
from mer_export.metrics.metric import Family, Metric

FAMILIES: dict[str, Family] = {
    "classification": classification.FAMILY,
    "multilabel": multilabel.FAMILY,
    **{name: scale.family for name, scale in sentiment.SCALES.items()},
    "features": Family((Metric("cosine", "plain"),), "cosine"),
}
"""By the kind of a task, of a regression by its scale."""
LOSSES = (Metric("loss", "plain", "lower"), Metric("loss_prediction", "plain", "lower"))
"""What training measures beside the metrics of the task: the whole loss, and without its auxiliary parts."""
METRICS: dict[str, Metric] = {m.name: m for group in (*(f.metrics for f in FAMILIES.values()), LOSSES) for m in group}


def known(name: str) -> Metric | None:
    """The metric of that name, `f1/joy` being that of one label; None where there is none."""
    whole, _, label = name.partition("/")
    found = METRICS.get(whole)
    return found.of(label) if found and label else found


def find(name: str) -> Metric:
    """The metric of that name; raises UsageError with those that exist."""
    found = known(name)
    if found is None:
        raise UsageError(f"no metric {name!r}, there are {list(METRICS)}")
    return found


def main(measured: dict[str, float]) -> dict[str, float]:
    """Of what was measured the few metrics that say how good a model is."""
    return {name: value for name, value in measured.items() if (found := known(name)) and found.main}
