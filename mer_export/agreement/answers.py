"""One sample with the answers of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mer_export.data.samples import Sample
from mer_export.task import Task

Outputs = Mapping[str, np.ndarray]
"""Unpadded output rows of one sample, by output name."""


@dataclass(frozen=True)
class Compared:
    """One sample with both outputs.

    `strata` names the part that it belongs to, by kind. `real` is False for what was made up to be run, such as a
    dialogue without sound: it is judged on the error of its outputs and never on its labels.
    """

    sample: Sample
    reference: Outputs
    candidate: Outputs
    strata: Mapping[str, str] = field(default_factory=dict)
    real: bool = True

    def scores(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Both sides' scores of the task as (units, width); a sample-level output is one unit."""
        return rows(self.reference[task.output]), rows(self.candidate[task.output])


def rows(scores: np.ndarray) -> np.ndarray:
    """Scores as (units, width)."""
    return scores.reshape(-1, scores.shape[-1])
