"""Task metrics of a bundle on labelled samples, on any backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.data.samples import Sample
from mer_export.errors import InputError
from mer_export.metrics.measure import measure
from runtimes.predict.predictor import Predictor


def evaluate(predictor: Predictor, samples: Sequence[Sample]) -> dict[str, float]:
    """Metrics in percent over all labelled units that have a prediction.

    Raises:
        InputError: no unit has a label.
    """
    labelled = [s for s in samples if s.labels is not None]
    if not labelled:
        raise InputError("no item of this split has labels: evaluation needs labelled data")
    scores = np.concatenate(predictor.scores(labelled))
    labels = np.concatenate([s.labels for s in labelled if s.labels is not None])
    answered = ~np.isnan(scores).any(axis=-1)
    return measure(predictor.task, labels[answered], scores[answered])
