"""Everything that a candidate's outputs say beside the reference's; knows no runtime and no exporter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from mer_export.agreement.answers import Compared
from mer_export.agreement.calibration import CalibrationDrift, calibration_drift
from mer_export.agreement.error import OutputError, output_error
from mer_export.agreement.flips import Flip, changed, find_flips, flip_matrix, sign_flips
from mer_export.agreement.metrics import MetricDifference, metric_differences
from mer_export.agreement.policy import Policy
from mer_export.bundle import Strict
from mer_export.task import Task


class Stratum(Strict):
    """A part of the compared samples. Errors are of all of them, `flips` of the real ones."""

    kind: str
    name: str
    samples: int
    units: int
    max_abs: float
    used: float
    flips: int


class Comparison(Strict):
    """A candidate beside the reference: errors of all samples, everything else of the real ones."""

    samples: int
    units: int
    labelled: int = 0
    """Units whose label is known."""
    outputs: list[OutputError]
    flips: int
    flips_beyond_noise: int
    sign_flips: int | None = None
    """Units whose score changes sign (0 counts as positive), where the task is a regression."""
    sign_flips_beyond_noise: int | None = None
    listed_flips: list[Flip] = Field(default_factory=list)
    flip_matrix: list[list[int]]
    """Units by label: row = reference, column = candidate. Empty where a unit has not exactly one label."""
    metrics: list[MetricDifference] = Field(default_factory=list)
    calibration: CalibrationDrift | None = None
    """What the probabilities are worth, where units have labels to choose from."""
    strata: list[Stratum] = Field(default_factory=list)


def compare(items: Sequence[Compared], task: Task, policy: Policy, precision: str, seed: int = 0) -> Comparison:
    """Compares all `items` under the rule of `precision`.

    Task metrics are computed where real samples carry labels.
    """
    real = [i for i in items if i.real]
    flips, signs = find_flips(items, task), sign_flips(items, task)
    return Comparison(
        samples=len(real),
        units=sum(len(i.sample.units) for i in real),
        labelled=sum(int(task.known(i.sample.labels).sum()) for i in real if i.sample.labels is not None),
        outputs=output_errors(items, policy, precision),
        flips=len(flips),
        flips_beyond_noise=sum(not f.noise for f in flips),
        sign_flips=signs and signs[0],
        sign_flips_beyond_noise=signs and signs[1],
        listed_flips=flips[: policy.listed_flips],
        flip_matrix=flip_matrix(items, task),
        metrics=metric_differences(items, task, seed),
        calibration=calibration_drift(items, task),
        strata=_strata(items, task, policy.tolerance(precision, task.output)),
    )


def output_errors(items: Sequence[Compared], policy: Policy, precision: str) -> list[OutputError]:
    """The error of each output over all `items`."""
    return [
        output_error(
            name,
            [i.reference[name] for i in items],
            [i.candidate[name] for i in items],
            *policy.tolerance(precision, name),
        )
        for name in (items[0].reference if items else ())
    ]


def _strata(items: Sequence[Compared], task: Task, tolerance: tuple[float, float]) -> list[Stratum]:
    groups: dict[tuple[str, str], list[Compared]] = {}
    for item in items:
        for key in item.strata.items():
            groups.setdefault(key, []).append(item)
    found = [_stratum(kind, name, members, task, tolerance) for (kind, name), members in groups.items()]
    return sorted(found, key=lambda s: s.kind)


def _stratum(kind: str, name: str, members: Sequence[Compared], task: Task, tolerance: tuple[float, float]) -> Stratum:
    a, b = (np.concatenate(side) for side in zip(*(i.scores(task) for i in members), strict=True))
    error = output_error(task.output, [a], [b], *tolerance)
    return Stratum(
        kind=kind,
        name=name,
        samples=len(members),
        units=len(a),
        max_abs=error.max_abs,
        used=error.used,
        flips=sum(len(changed(*i.scores(task), task)) for i in members if i.real),
    )
