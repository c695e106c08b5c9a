"""What a run would do, found out by reading its data: which variants answer how many units, in which batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from mer_export.bucket import Bucket
from mer_export.data.collate import collate
from mer_export.data.given import Given, checked
from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError
from mer_export.task import Task
from runtimes.backends.admission import admit
from runtimes.backends.table import backend_problem
from runtimes.predict.predictor import Predictor


def preview(predictor: Predictor, samples: Iterable[Given]) -> dict[str, Any]:
    """The run, without its answers: runtime, counts, buckets, and how the features compare.

    Raises:
        InputError: a sample that the run would stop at.
        NotAvailableError: the runtime is not available on this machine.
        UntrustedError: a variant that may not be loaded.
    """
    if problem := backend_problem(predictor.backend, predictor.options):
        raise NotAvailableError(problem)
    contract, buckets, counts = predictor.contract, Counter[Bucket | None](), Counter[str]()
    for sample in checked(samples, contract):
        counts.update(unit_counts(sample, predictor.task))
        unanswered = set(range(len(sample.units)))
        for bucket, piece in predictor.route(sample):
            buckets[bucket] += 1
            # Padding is where values are checked.
            collate([piece.sample], contract, bucket)
            unanswered -= set(range(piece.start, piece.start + piece.keep.stop - piece.keep.start))
        counts["without_prediction"] += len(unanswered)
        counts["nothing_to_read"] += len(sample.unread) if sample.readable(contract) else len(sample.units)
        predictor.features.add([sample.read])
    predictor.features.tell(predictor.strict_features)
    return {
        "runtime": predictor.backend,
        "precision": predictor.precision,
        "device": predictor.options.device,
        "threads": predictor.options.threads,
        "workers": predictor.workers,
        **counts,
        "buckets": {
            b.name if b else "any length": _bucket(predictor, b, buckets[b])
            for b in (None, *predictor.buckets)
            if b in buckets
        },
        **predictor.features.summary(),
    }


def unit_counts(sample: Sample, task: Task) -> dict[str, int]:
    """What one sample adds to the counts of a data set."""
    labelled = 0 if sample.labels is None else int(task.known(sample.labels).sum())
    return {"samples": 1, "units": len(sample.units), "labelled": labelled}


def _bucket(predictor: Predictor, bucket: Bucket | None, samples: int) -> dict[str, Any]:
    variant = predictor.variant(bucket)
    if variant is not None:
        admit(predictor.bundle, variant)
    size = predictor.batch_for(bucket)
    return {"variant": variant.name if variant else "eager", "samples": samples, "batch": size}
