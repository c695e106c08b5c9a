"""Statistics of agreement between a candidate's outputs and the reference's; knows no runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from mer_export.bundle import Strict
from mer_export.data.samples import Sample
from mer_export.metrics.measure import measure
from mer_export.task import Task
from runtimes.parity.policy import Policy

Outputs = Mapping[str, np.ndarray]
"""Unpadded output rows of one sample, by output name."""


class OutputError(Strict):
    """Agreement of one output over all samples. Errors are of finite elements; `used` is the largest part of the
    tolerance that an element takes (1 = exactly at the limit, very large where one is NaN or infinite)."""

    output: str
    atol: float
    rtol: float
    elements: int
    max_abs: float
    mean_abs: float
    used: float
    cosine: float | None
    nonfinite: int
    """NaN or infinite elements of the candidate."""


class Flip(Strict):
    """A decision that the candidate changes: the label of a unit, or whether one of its labels holds.

    `margin` is the reference's top minus second score (or distance to the threshold), `difference` the largest score
    difference of this unit, `noise` whether the margin is below twice the candidate's largest difference, `label` the
    truth where known.
    """

    sample: str
    unit: str
    reference: str
    candidate: str
    label: str | None
    margin: float
    difference: float
    noise: bool


class MetricDifference(Strict):
    """A task metric in points, and the 95 % interval of `difference` over resampled samples."""

    metric: str
    reference: float
    candidate: float
    difference: float
    low: float | None = None
    high: float | None = None


class Stratum(Strict):
    """A part of the compared samples."""

    kind: str
    name: str
    samples: int
    units: int
    max_abs: float
    used: float
    flips: int


class Comparison(Strict):
    """Everything that a candidate's outputs say beside the reference's."""

    samples: int
    units: int
    outputs: list[OutputError]
    flips: int
    flips_beyond_noise: int
    sign_flips: int | None = None
    """Units whose score changes sign (0 counts as positive), where the task is a regression."""
    listed_flips: list[Flip] = Field(default_factory=list)
    flip_matrix: list[list[int]]
    """Units by label: row = reference, column = candidate. Empty where a unit has not exactly one label."""
    metrics: list[MetricDifference] = Field(default_factory=list)
    strata: list[Stratum] = Field(default_factory=list)


@dataclass(frozen=True)
class Compared:
    """One sample with both outputs. `strata` names the part it belongs to, by kind; `real` is False for probes."""

    sample: Sample
    reference: Outputs
    candidate: Outputs
    strata: Mapping[str, str]
    real: bool = True


def output_error(
    name: str, reference: Sequence[np.ndarray], candidate: Sequence[np.ndarray], atol: float, rtol: float
) -> OutputError:
    """Agreement of one output: arrays of equal shapes, pairwise."""
    a = np.concatenate([x.reshape(-1) for x in reference]).astype(np.float64)
    b = np.concatenate([x.reshape(-1) for x in candidate]).astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    nonfinite = int((~np.isfinite(b)).sum())
    share = used(a, b, atol, rtol, np.concatenate([_scale(x) for x in reference]))
    a, b = a[finite], b[finite]
    error = np.abs(a - b)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return OutputError(
        output=name,
        atol=atol,
        rtol=rtol,
        elements=finite.size,
        max_abs=float(error.max(initial=0.0)),
        mean_abs=float(error.mean()) if error.size else 0.0,
        used=share,
        cosine=float(a @ b / norm) if norm else None,
        nonfinite=nonfinite,
    )


def _scale(reference: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row, for each of its elements.

    Scores of one unit are computed together: a small log-probability is the difference of scores as large as the
    largest one, and is rounded as they are.
    """
    magnitude = np.abs(reference.astype(np.float64))
    magnitude = np.where(np.isfinite(magnitude), magnitude, 0.0)
    return np.broadcast_to(magnitude.max(axis=-1, keepdims=True, initial=0.0), reference.shape).reshape(-1)


def used(reference: np.ndarray, candidate: np.ndarray, atol: float, rtol: float, scale: np.ndarray) -> float:
    """The largest |a - b| / (atol + rtol * scale); 0 for equal arrays at tolerance 0, large for unequal ones."""
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    error = np.abs(reference - candidate)
    tolerance = np.maximum(atol + rtol * scale, np.finfo(np.float64).tiny)
    share = np.where(error == 0, 0.0, np.minimum(error / tolerance, 1e12))
    return float(np.where(np.isfinite(share), share, 1e12).max(initial=0.0))


def compare(items: Sequence[Compared], task: Task, policy: Policy, precision: str, seed: int = 0) -> Comparison:
    """Compares all `items` under the rule of `precision`.

    Task metrics are computed where real samples carry labels.
    """
    names = list(items[0].reference) if items else []
    errors = [
        output_error(
            name,
            [i.reference[name] for i in items],
            [i.candidate[name] for i in items],
            *policy.tolerance(precision, name),
        )
        for name in names
    ]
    noise = 2 * next((e.max_abs for e in errors if e.output == task.output), 0.0)
    flips = [f for i in items for f in sample_flips(i, task, noise)]
    return Comparison(
        samples=len(items),
        units=sum(len(i.sample.units) for i in items),
        outputs=errors,
        flips=len(flips),
        flips_beyond_noise=sum(not f.noise for f in flips),
        sign_flips=_sign_flips(items, task),
        listed_flips=sorted(flips, key=lambda f: -f.margin)[: policy.listed_flips],
        flip_matrix=_flip_matrix(items, task),
        metrics=metric_differences([i for i in items if i.real], task, seed),
        strata=_strata(items, task, policy.tolerance(precision, task.output)),
    )


def sample_flips(item: Compared, task: Task, noise: float) -> list[Flip]:
    """The units of one sample that change label; `noise` is the margin below which a flip is numeric noise."""
    a, b = _rows(item.reference[task.output]), _rows(item.candidate[task.output])
    before, after = task.decisions(a), task.decisions(b)
    margin = task.margin(a).reshape(before.shape)
    difference = np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=3.4e38)
    return [
        Flip(
            sample=item.sample.id,
            unit=item.sample.units[i],
            reference=task.word(int(before[i, j]), j),
            candidate=task.word(int(after[i, j]), j),
            label=_truth(item, task, i, j),
            margin=float(margin[i, j]),
            difference=float(difference[i].max() if task.exclusive else difference[i, j]),
            noise=bool(margin[i, j] <= noise),
        )
        for i, j in np.argwhere(before != after).tolist()
    ]


def _truth(item: Compared, task: Task, unit: int, place: int) -> str | None:
    """The true decision in words, where it is known."""
    labels = item.sample.labels
    if not item.real or labels is None or not task.known(labels)[unit]:
        return None
    return task.word(int(task.truth(labels[unit : unit + 1]).reshape(-1)[place]), place)


def metric_differences(
    items: Sequence[Compared], task: Task, seed: int = 0, rounds: int = 500
) -> list[MetricDifference]:
    """Task metrics of reference and candidate, with a bootstrap interval that resamples whole samples.

    Whole samples, because utterances of one dialogue are not independent. Identical decisions need no resampling:
    the interval is exactly 0.
    """
    labelled = [i for i in items if i.sample.labels is not None and task.known(i.sample.labels).any()]
    if not labelled:
        return []
    labels = [np.asarray(i.sample.labels) for i in labelled]
    reference = [_rows(i.reference[task.output]) for i in labelled]
    candidate = [_rows(i.candidate[task.output]) for i in labelled]

    def measured(which: Sequence[int], scores: list[np.ndarray]) -> dict[str, float]:
        found = measure(task, np.concatenate([labels[i] for i in which]), np.concatenate([scores[i] for i in which]))
        return {name: value for name, value in found.items() if np.isfinite(value)}

    everything = range(len(labelled))
    a, b = measured(everything, reference), measured(everything, candidate)
    # An AUC moves where no decision does; that needs no interval.
    same = all(
        np.array_equal(_decisive(x, task), _decisive(y, task)) for x, y in zip(reference, candidate, strict=True)
    )
    drawn = {} if same else _resampled(measured, len(labelled), reference, candidate, seed, rounds)
    return [
        MetricDifference(
            metric=name,
            reference=a[name],
            candidate=b[name],
            difference=b[name] - a[name],
            low=0.0 if same else float(np.nanquantile(drawn[name], 0.025)),
            high=0.0 if same else float(np.nanquantile(drawn[name], 0.975)),
        )
        for name in a
        if name in b and (same or name in drawn)
    ]


def _decisive(scores: np.ndarray, task: Task) -> np.ndarray:
    """What metrics depend on: the decisions, or the scores of a regression."""
    return scores if task.kind == "regression" else task.decide(scores)


def _resampled(
    measure: Callable[[Sequence[int], list[np.ndarray]], dict[str, float]],
    samples: int,
    reference: list[np.ndarray],
    candidate: list[np.ndarray],
    seed: int,
    rounds: int,
) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    differences: dict[str, list[float]] = {}
    for _ in range(rounds):
        which = random.integers(0, samples, samples).tolist()
        a, b = measure(which, reference), measure(which, candidate)
        for name in a.keys() & b.keys():
            differences.setdefault(name, []).append(b[name] - a[name])
    return differences


def _sign_flips(items: Sequence[Compared], task: Task) -> int | None:
    if task.kind != "regression":
        return None
    pairs = ((_rows(i.reference[task.output]), _rows(i.candidate[task.output])) for i in items)
    return sum(int(((a >= 0) != (b >= 0)).sum()) for a, b in pairs)


def _flip_matrix(items: Sequence[Compared], task: Task) -> list[list[int]]:
    if not task.exclusive:
        return []
    matrix = np.zeros((len(task.labels), len(task.labels)), dtype=np.int64)
    for item in items:
        before, after = (task.decide(_rows(o[task.output])) for o in (item.reference, item.candidate))
        np.add.at(matrix, (before, after), 1)
    return matrix.tolist()


def _strata(items: Sequence[Compared], task: Task, tolerance: tuple[float, float]) -> list[Stratum]:
    groups: dict[tuple[str, str], list[Compared]] = {}
    for item in items:
        for key in item.strata.items():
            groups.setdefault(key, []).append(item)
    strata = []
    for (kind, name), members in groups.items():
        a = np.concatenate([_rows(i.reference[task.output]) for i in members])
        b = np.concatenate([_rows(i.candidate[task.output]) for i in members])
        error = output_error(task.output, [a], [b], *tolerance)
        flips = int((task.decide(a) != task.decide(b)).sum())
        strata.append(
            Stratum(
                kind=kind,
                name=name,
                samples=len(members),
                units=len(a),
                max_abs=error.max_abs,
                used=error.used,
                flips=flips,
            )
        )
    return sorted(strata, key=lambda s: s.kind)


def _rows(scores: np.ndarray) -> np.ndarray:
    """Scores as (units, classes); a sample-level output is one unit."""
    return scores.reshape(-1, scores.shape[-1])
