"""What an experiment measured, and the table of the paper over it: mean, deviation, least and most over runs."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

from mer_export.bundle import Strict, write_atomic
from mer_export.contract import Semantics
from mer_export.errors import UsageError
from mer_export.markdown import table
from mer_export.metrics import find
from mer_export.metrics.measure import area_over_rates

Names = dict[str, str]
SPLIT = "split"
"""The axis of a table that shows several splits."""
RESULT = "experiment"
"""Name of the files with the results."""


class TableSpec(Strict):
    """Which numbers the table shows, and over which axes it averages."""

    split: str = "test"
    beside: tuple[str, ...] = ()
    """Further splits, each a line of its own."""
    columns: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Heading to metric; two of them are written `a/b`. `batch:accuracy` is measured in the batches of the paper."""
    over: tuple[str, ...] = ("seed",)
    """Axes whose runs are averaged."""
    area: str | None = None
    """An axis of rates: the table ends with the area under each metric over it (AUILC)."""

    @field_validator("columns", mode="before")
    @classmethod
    def _several(cls, columns: object) -> object:
        if not isinstance(columns, dict):
            return columns
        return {title: (names,) if isinstance(names, str) else names for title, names in columns.items()}

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for names in columns.values():
            for name in names:
                try:
                    find(metric_of(name)[1])
                except UsageError as error:
                    raise ValueError(str(error)) from None
        return columns

    @property
    def splits(self) -> tuple[str, ...]:
        """All that are shown."""
        return (self.split, *self.beside)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric of every column, `batch:` included."""
        return tuple(dict.fromkeys(n for names in self.columns.values() for n in names))


def metric_of(name: str) -> tuple[Semantics, str]:
    """The semantics and the metric of a name in a column."""
    semantics, colon, metric = name.rpartition(":")
    if colon and semantics not in ("single", "batch"):
        raise UsageError(f"{name}: semantics are single and batch, not {semantics!r}")
    return ("batch" if semantics == "batch" else "single"), metric


class Trained(Strict):
    """One measured cell: the model, where in the grid, its bundle, and its metrics by name in the table's spec."""

    model: str
    cell: Names
    """Axis to value; with several splits, which of them under `split`."""
    bundle: str
    metrics: dict[str, float | None]
    """None where the metric does not exist: a class that the split lacks."""


class Failed(Strict):
    """A cell that could not be trained or measured, and why."""

    model: str
    cell: Names
    reason: str

    @property
    def where(self) -> str:
        """The cell in words: `seed=1`."""
        return " ".join(f"{axis}={value}" for axis, value in self.cell.items())


@dataclass(frozen=True)
class Statistic:
    """A metric over the runs of a row."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Not a number where there are no values."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Of the sample (n - 1); 0 for one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    model: str
    cell: Names
    """The axes that are not averaged over."""
    runs: int
    metrics: dict[str, Statistic]


class ExperimentResult(Strict):
    """Everything that an experiment measured; kept as `experiment.json` beside its bundles."""

    schema_version: int = 1
    title: str
    source: str = ""
    table: TableSpec
    trained: list[Trained] = Field(default_factory=list)
    failed: list[Failed] = Field(default_factory=list)

    def save(self, out: Path) -> None:
        """Writes `experiment.json`, `.md` and `.csv` into a directory."""
        for suffix, text in ((".json", self.model_dump_json(indent=1)), (".md", self.markdown()), (".csv", self.csv())):
            write_atomic(out / f"{RESULT}{suffix}", text.encode())

    def refuse_gaps(self) -> None:
        """Raises UsageError where cells could not be measured, with how many and why the first one."""
        if self.failed:
            first, all_cells = self.failed[0], len(self.failed) + len(self.trained)
            raise UsageError(
                f"{len(self.failed)} of {all_cells} cells were not measured, the first is {first.model} {first.where}: "
                f"{first.reason}"
            )

    @property
    def axes(self) -> list[str]:
        """The axes that tell the rows of a model apart."""
        return list(dict.fromkeys(a for t in self.trained for a in t.cell if a not in self.table.over))

    @property
    def rows(self) -> list[Row]:
        """The runs put together over the averaged axes, in the order they were planned."""
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Trained]] = {}
        for trained in self.trained:
            cell = tuple((a, v) for a, v in trained.cell.items() if a not in self.table.over)
            groups.setdefault((trained.model, cell), []).append(trained)
        once = {place: _once_each(runs) for place, runs in groups.items()}
        return [Row(m, dict(cell), len(runs), self._over(runs)) for (m, cell), runs in once.items()]

    def _over(self, runs: Sequence[Trained]) -> dict[str, Statistic]:
        # A class that one fold lacks has no mean over folds.
        found = {n: [v for t in runs if (v := t.metrics.get(n)) is not None] for n in self.table.metrics}
        return {n: Statistic(tuple(v) if len(v) == len(runs) else ()) for n, v in found.items()}

    @property
    def areas(self) -> list[Row]:
        """The area under the mean of each metric over the rates: one line per model and the rest of its cell.

        Empty where there is no axis of rates, or these do not rise from 0 in equal steps. A model of which a rate that
        is known of others was not measured, or failed, has no area: over fewer rates it would be another number.
        """
        axis = self.table.area
        places = [cell.cell for cell in self.trained] + [cell.cell for cell in self.failed]
        known = {float(place[axis]) for place in places} if axis else set()
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], dict[float, Row]] = {}
        for row in self.rows if axis else ():
            rest = tuple((a, v) for a, v in row.cell.items() if a != axis)
            groups.setdefault((row.model, rest), {})[float(row.cell[axis or ""])] = row
        return [
            Row(model, dict(rest), min(r.runs for r in rates.values()), _areas(rates, self.table.metrics))
            for (model, rest), rates in groups.items()
            if rates.keys() == known and _step(sorted(rates)) is not None
        ]

    def markdown(self) -> str:
        """The table as a page."""
        lines = [f"# {self.title}", "", *([self.source, ""] if self.source else [])]
        lines += [self.caption(), "", *table(self.header(), [self.line(r) for r in self.rows]), ""]
        if self.areas:
            lines += [*self.area_lines(), ""]
        if self.failed:
            lines += ["Not measured:", ""]
            lines += [f"* {f.model} {f.where}: {f.reason}" for f in self.failed] + [""]
        return "\n".join(lines)

    def caption(self) -> str:
        """What the numbers are."""
        averaged = f"mean ± deviation (least to most) over {', '.join(self.table.over)}"
        several = any(r.runs > 1 for r in self.rows)
        return f"Split {' and '.join(self.table.splits)}" + (f"; {averaged}." if several else ", one run each.")

    def header(self) -> tuple[str, ...]:
        """Headings of the table."""
        return ("model", *self.axes, "runs", *self.table.columns)

    def line(self, row: Row) -> tuple[str, ...]:
        """The cells of a row as text."""
        cells = (self._cell([(n, row.metrics[n]) for n in names]) for names in self.table.columns.values())
        return (row.model, *(row.cell.get(a, "") for a in self.axes), str(row.runs), *cells)

    def _cell(self, found: Sequence[tuple[str, Statistic]]) -> str:
        def joined(values: Iterator[float]) -> str:
            return "/".join(_text(n, v) for (n, _), v in zip(found, values, strict=True))

        mean = joined(s.mean for _, s in found)
        if any(len(s.values) < 2 for _, s in found):
            return mean
        least, most = joined(min(s.values) for _, s in found), joined(max(s.values) for _, s in found)
        return f"{mean} ± {joined(s.std for _, s in found)} ({least} to {most})"

    def area_lines(self) -> list[str]:
        """The table of areas."""
        says = f"Area under the means over {self.table.area} (AUILC), not divided by their span:"
        return [says, "", *table(self.area_header(), [self.area_line(r) for r in self.areas])]

    def area_header(self) -> tuple[str, ...]:
        """Headings of the table of areas."""
        return ("model", *(a for a in self.axes if a != self.table.area), *self.table.columns)

    def area_line(self, row: Row) -> tuple[str, ...]:
        """The cells of a row of areas, printed with one digit of percents as the paper does."""
        means = (
            "/".join(find(metric_of(n)[1]).printed(row.metrics[n].mean) for n in names)
            for names in self.table.columns.values()
        )
        return (row.model, *(row.cell.get(a, "") for a in self.axes if a != self.table.area), *means)

    def _split_of(self, row: Row) -> str:
        return row.cell.get(SPLIT, self.table.split)

    def csv(self) -> str:
        """A line per row and metric, with every number in full."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("model", *self.axes, "split", "metric", "runs", "mean", "std", "min", "max"))
        for row in self.rows:
            for name, s in row.metrics.items():
                numbers = (s.mean, s.std, min(s.values), max(s.values)) if s.values else ("", "", "", "")
                place = (row.model, *(row.cell.get(a, "") for a in self.axes))
                writer.writerow((*place, self._split_of(row), name, row.runs, *numbers))
        for row in self.areas:
            for name, s in row.metrics.items():
                place = (row.model, *("area" if a == self.table.area else row.cell.get(a, "") for a in self.axes))
                writer.writerow((*place, self._split_of(row), name, row.runs, s.mean, "", "", ""))
        return out.getvalue()


def _once_each(runs: Sequence[Trained]) -> list[Trained]:
    """Cells that share one bundle and measured it alike are one run: what no seed changes is trained once."""
    return [t for i, t in enumerate(runs) if all((t.bundle, t.metrics) != (u.bundle, u.metrics) for u in runs[:i])]


def _areas(rates: dict[float, Row], names: Sequence[str]) -> dict[str, Statistic]:
    step = _step(sorted(rates)) or 0.0
    means = {n: [rates[r].metrics[n].mean for r in sorted(rates)] for n in names}
    return {n: Statistic((float(area_over_rates(np.asarray(values), step)),)) for n, values in means.items()}


def _step(rates: Sequence[float]) -> float | None:
    """The distance of neighbours, None unless the rates rise from 0 in equal steps."""
    steps = [b - a for a, b in pairwise(rates)]
    equal = len(steps) > 0 and rates[0] == 0 and all(math.isclose(s, steps[0], abs_tol=1e-9) for s in steps)
    return steps[0] if equal else None


def _text(name: str, value: float) -> str:
    return "–" if math.isnan(value) else find(metric_of(name)[1]).text(value)
