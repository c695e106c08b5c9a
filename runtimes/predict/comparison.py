"""Several bundles on the same labelled units: intervals of their metrics, and whether their differences are chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from pydantic import Field

from mer_export.bundle import Strict
from mer_export.errors import MerError, UsageError
from mer_export.markdown import table
from mer_export.metrics import find
from mer_export.metrics.measure import tally
from mer_export.metrics.resampling import Draws, bootstrap, interval, p_value, permuted, resolution
from mer_export.metrics.tally import ClassTable, Tally
from mer_export.task import Task
from mer_export.terminal import columns
from runtimes.predict.evaluate import Answers

ROUNDS = 10_000
"""Resamples, and permutations."""


class Interval(Strict):
    """A metric, and the middle 95 % of it over resampled groups."""

    value: float
    low: float
    high: float


class Contender(Strict):
    """A bundle and what it measures."""

    bundle: str
    system: str
    runtime: str
    precision: str
    metrics: dict[str, Interval] = Field(default_factory=dict)
    classes: list[ClassTable] = Field(default_factory=list)


class Difference(Strict):
    """A bundle less the first one, in points, with its 95 % interval and the p value of a permutation test."""

    bundle: str
    metric: str
    difference: float
    low: float
    high: float
    p: float


class Comparison(Strict):
    """Bundles side by side, on the units that all of them answer.

    `grouped` says whether units were resampled and permuted by their dialogue (or video), or one by one.
    """

    data: str
    split: str
    unit: str
    grouped: bool
    groups: int
    units: int
    left_out: int = 0
    rounds: int
    seed: int
    least_p: float
    contenders: list[Contender]
    differences: list[Difference]

    def caption(self) -> str:
        """What the numbers are, in two sentences."""
        by = "dialogue" if self.grouped else self.unit
        drawn = f"{self.groups} {by}s" + ("" if self.grouped else ", as these data name no dialogues")
        left = f" ({self.left_out} that some bundle does not answer left out)" if self.left_out else ""
        return (
            f"Split {self.split}, {self.units} {self.unit}s{left}; in brackets 95 % bootstrap intervals over {drawn} "
            f"({self.rounds} resamples, seed {self.seed}, the same for all). p is of a two-sided paired permutation "
            f"test by {by} against the first bundle ({self.rounds} permutations, least possible {self.least_p:.2g}), "
            "not corrected for the number of metrics."
        )

    def header(self) -> tuple[str, ...]:
        """Headings of the table of metrics."""
        others = [h for c in self.contenders[1:] for h in (f"{c.bundle} less {self.contenders[0].bundle}", "p")]
        return ("metric", *(c.bundle for c in self.contenders), *others)

    def rows(self) -> list[tuple[str, ...]]:
        """A line per metric under `header`."""
        found = {(d.bundle, d.metric): d for d in self.differences}
        return [
            (
                name,
                *(_spread(name, c.metrics[name]) for c in self.contenders),
                *(cell for c in self.contenders[1:] for cell in _change(found[c.bundle, name])),
            )
            for name in self.contenders[0].metrics
        ]

    def lines(self) -> list[str]:
        """For a terminal: the metrics and their differences."""
        return [*columns(self.header(), self.rows()), "", self.caption()]

    def page(self) -> str:
        """As Markdown."""
        lines = [f"# Evaluation on {self.data}", "", self.caption(), "", *table(self.header(), self.rows()), ""]
        for contender in self.contenders:
            said = f"{contender.system}, {contender.runtime}, {contender.precision}"
            lines += [f"## {contender.bundle}", "", said, "", *class_page(contender.classes)]
        return "\n".join(lines)


@contextmanager
def naming(bundle: str) -> Iterator[None]:
    """Of several bundles says which one it is that has no answers for these data."""
    try:
        yield
    except MerError as error:
        raise type(error)(f"{bundle} cannot be compared: {error}") from error


def class_lines(tables: Sequence[ClassTable]) -> list[str]:
    """Tables of classes and their confusion matrices as lines for a terminal."""
    lines: list[str] = []
    for one in tables:
        lines += ["", *columns((one.name, *one.header()[1:]), [r.cells() for r in one.rows])]
        if one.matrix is not None:
            rows = [(label, *row) for label, row in zip(one.labels, one.matrix, strict=True)]
            lines += ["", *columns(("true \\ predicted", *one.labels), rows)]
    return lines


def class_page(tables: Sequence[ClassTable]) -> list[str]:
    """Tables of classes and their confusion matrices as lines of Markdown."""
    lines: list[str] = []
    for one in tables:
        lines += [f"### {one.name}", "", *table(one.header(), [r.cells() for r in one.rows]), ""]
        if one.matrix is not None:
            rows = [(label, *row) for label, row in zip(one.labels, one.matrix, strict=True)]
            lines += ["True (rows) and predicted (columns):", "", *table(("", *one.labels), rows), ""]
    return lines


def compare(
    named: Sequence[tuple[Contender, Answers]], data: str, split: str, rounds: int = ROUNDS, seed: int = 0
) -> Comparison:
    """Measures bundles on the units that all of them answer, and each against the first.

    Args:
        named: at least two; what `Contender` says of metrics and classes is filled in here.
        data: of the answers, for the result.
        split: of the data, for the result.
        rounds: of the bootstrap and of the permutation test.
        seed: of both.

    Raises:
        UsageError: two bundles of one name, of different tasks or labels, or answers for other units.
    """
    names = [c.bundle for c, _ in named]
    if len({*names}) < len(names):
        raise UsageError(f"{' '.join(names)}: a bundle is named twice, a comparison takes different ones")
    first, *others = (a for _, a in named)
    found = [first, *(_aligned(first, a, names[0], name) for a, name in zip(others, names[1:], strict=True))]
    scored = np.logical_and.reduce([a.scored for a in found]) & first.known
    # A bundle that reads whole dialogues knows them where one of utterances may not.
    by = min((a.groups for a in found), key=lambda groups: len({*groups}))
    drawn_by, group = np.unique(np.asarray(by)[scored], return_inverse=True)
    groups, labels = len(drawn_by), first.labels[scored]
    sides = [a.scores[scored] for a in found]
    tallies = [_tally(first.task, labels, side, group, groups) for side in sides]
    draws, values = bootstrap(tallies, rounds, seed), [t.measured() for t in tallies]
    differences: list[Difference] = []
    for place in range(1, len(named)):
        both = _tally(
            first.task,
            np.concatenate([labels, labels]),
            np.concatenate([sides[0], sides[place]]),
            np.concatenate([group, group + groups]),
            2 * groups,
        )
        chance = permuted(both, rounds, seed)
        for name in values[0]:
            low, high = interval(draws[place][name] - draws[0][name])
            less = values[place][name] - values[0][name]
            p = p_value(less, chance[name]) if np.isfinite(less) else float("nan")
            differences.append(Difference(bundle=names[place], metric=name, difference=less, low=low, high=high, p=p))
    return Comparison(
        data=data,
        split=split,
        unit=first.task.unit,
        grouped=groups < len(labels),
        groups=groups,
        units=len(labels),
        left_out=int((first.known & ~scored).sum()),
        rounds=rounds,
        seed=seed,
        least_p=resolution(groups, rounds),
        contenders=[_measured(c, t, drawn) for (c, _), t, drawn in zip(named, tallies, draws, strict=True)],
        differences=differences,
    )


def _measured(who: Contender, counted: Tally, draws: Draws) -> Contender:
    ends = {name: interval(values) for name, values in draws.items()}
    metrics = {n: Interval(value=v, low=ends[n][0], high=ends[n][1]) for n, v in counted.measured().items()}
    return who.model_copy(update={"metrics": metrics, "classes": counted.tables()})


def _tally(task: Task, labels: np.ndarray, scores: np.ndarray, group: np.ndarray, groups: int) -> Tally:
    found = tally(task, labels, scores, group, groups)
    if found is None:
        raise UsageError("there is no labelled unit that all bundles answer: nothing to compare")
    return found


def _aligned(first: Answers, other: Answers, name: str, other_name: str) -> Answers:
    """The rows of `other` in the order of `first`."""
    for what in ("kind", "labels", "scale", "unit"):
        mine, theirs = getattr(first.task, what), getattr(other.task, what)
        if mine != theirs:
            raise UsageError(
                f"{name} and {other_name} cannot be compared: the {what} of their tasks are {mine} and {theirs}"
            )
    places = {unit: row for row, unit in enumerate(other.units)}
    if first.units != other.units and (len(places) < len(other.units) or {*first.units} != {*places}):
        alone = next((u for u in first.units if u not in places), None) or next(iter({*places} - {*first.units}), "")
        raise UsageError(
            f"{name} and {other_name} read different units of these data, one of them alone has {alone!r}: compare "
            "bundles that read the same"
        )
    order = [places[u] for u in first.units] if first.units != other.units else list(range(len(other.units)))
    if not np.array_equal(first.labels, other.labels[order], equal_nan=first.labels.dtype.kind == "f"):
        raise UsageError(
            f"{name} and {other_name} read different labels of these data: compare bundles that read the same"
        )
    groups = tuple(other.groups[i] for i in order)
    return other._replace(
        units=first.units, groups=groups, labels=first.labels, scores=other.scores[order], empty=other.empty[order]
    )


def _spread(name: str, found: Interval) -> str:
    metric = find(name)
    return f"{metric.text(found.value)} [{metric.text(found.low)}, {metric.text(found.high)}]"


def _change(found: Difference) -> tuple[str, str]:
    metric = find(found.metric)
    text = f"{metric.change(found.difference)} [{metric.change(found.low)}, {metric.change(found.high)}]"
    return text, f"{found.p:.4f}"
