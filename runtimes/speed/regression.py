"""Is this benchmark slower than an earlier one? Ratios to eager are compared, which carry over where times do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from mer_export.bundle import Strict
from mer_export.errors import PerformanceError, UsageError
from mer_export.markdown import some, table
from runtimes.speed.bench_report import BASE, UNPADDED, BenchReport, Row

Key = tuple[str, str]
"""Case and candidate."""


class Change(Strict):
    """One candidate in one case: its ratio to eager then and now. `change` is relative, below 0 is slower."""

    case: str
    candidate: str
    before: float
    now: float
    change: float
    slower: bool


class Regression(Strict):
    """Every row that both reports have, and the names of those that one of them lacks."""

    baseline: str
    tolerance: float
    rows: list[Change]
    only_before: list[str]
    only_now: list[str]

    @property
    def slower(self) -> list[Change]:
        """Rows that lost more than the tolerance, the worst first."""
        return sorted((r for r in self.rows if r.slower), key=lambda r: r.change)

    @property
    def failed(self) -> bool:
        """Whether a row lost too much, or there is none."""
        return bool(self.slower) or not self.rows


def parse_tolerance(text: str) -> float:
    """`10%` or `0.1` as 0.1; raises UsageError unless it is at least 0 and less than 100 %."""
    number, percent = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        value = float(number) * percent
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"--tolerance {text}: expected a share below 100 % such as 10% or 0.1")
    return value


def read_baseline(path: Path, system: str, threads: int | None) -> BenchReport:
    """An earlier reports/bench.json.

    Raises:
        UsageError: no such file, no benchmark report, or one of another system or thread count.
    """
    try:
        report = BenchReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--baseline {path} cannot be read: {error.strerror}") from None
    except ValidationError:
        raise UsageError(f"--baseline {path} is not a report of mer bench: pass a bench.json") from None
    if report.system != system:
        raise UsageError(f"--baseline {path} is of system {report.system}, this bundle is of {system}")
    if report.threads != threads:
        raise UsageError(
            f"--baseline {path} was measured on {report.threads or 'default'} threads, this run has "
            f"{threads or 'default'}: pass --threads {report.threads or ''}".rstrip()
        )
    return report


def compare(report: BenchReport, baseline: BenchReport, tolerance: float, source: str) -> Regression:
    """Holds every candidate's ratio to eager against that of an earlier report, case by case."""
    before, now = dict(_rows(baseline)), dict(_rows(report))
    rows = []
    for key in now:
        if key in before:
            old, new = before[key].ratio.median, now[key].ratio.median
            change = new / old - 1
            rows.append(
                Change(case=key[0], candidate=key[1], before=old, now=new, change=change, slower=change < -tolerance)
            )
    return Regression(
        baseline=source,
        tolerance=tolerance,
        rows=rows,
        only_before=[_name(k) for k in before if k not in now],
        only_now=[_name(k) for k in now if k not in before],
    )


def require(found: Regression) -> None:
    """Raises PerformanceError where a row is slower than the tolerance allows, with the worst and how many, or where
    there was nothing to compare."""
    if not found.rows:
        raise PerformanceError(
            f"speed was not compared: no candidate and case of {found.baseline} was measured now, there are "
            f"{some(found.only_now) or 'none'} and were {some(found.only_before) or 'none'}"
        )
    if not found.slower:
        return
    worst = found.slower[0]
    more = f"; {len(found.slower) - 1} more fell too" if len(found.slower) > 1 else ""
    raise PerformanceError(
        f"{worst.candidate} at {worst.case} is {worst.now:.2f} x eager, {worst.before:.2f} x in {found.baseline}: "
        f"{-worst.change:.0%} slower, allowed are {found.tolerance:.0%}{more}"
    )


def markdown(found: Regression) -> str:
    """The comparison as Markdown."""
    rows = [
        (r.case, r.candidate, f"{r.before:.2f}", f"{r.now:.2f}", f"{r.change:+.0%}", "slower" if r.slower else "ok")
        for r in found.rows
    ]
    lines = [f"# Against {found.baseline}, tolerance {found.tolerance:.0%}", ""]
    lines += table(("case", "candidate", "x eager before", "x eager now", "change", ""), rows)
    for title, names in (("Only in the baseline", found.only_before), ("Not in the baseline", found.only_now)):
        if names:
            lines += ["", f"{title}, not compared:", "", *(f"- {name}" for name in names)]
    return "\n".join(lines) + "\n"


def _rows(report: BenchReport) -> Iterator[tuple[Key, Row]]:
    """Every row but eager's own, which is what the others are held against."""
    for case in report.cases:
        for row in case.rows:
            if row.name not in (BASE, UNPADDED):
                yield (case.name, row.name), row


def _name(key: Key) -> str:
    return f"{key[1]} at {key[0]}"
