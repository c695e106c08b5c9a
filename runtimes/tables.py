"""Parity and benchmark reports as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mer_export.contract import lengths_name
from runtimes.candidate import grouped_reasons

if TYPE_CHECKING:
    from runtimes.bench import BenchReport, Case
    from runtimes.compare import Comparison
    from runtimes.parity import CandidateReport, ParityReport

SHOWN_FLIPS = 20


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of a list: `a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def verdict_line(report: ParityReport) -> str:
    """What parity found, in one sentence."""
    ran, failed = report.ran, [c for c in report.candidates if c.verdict == "fail"]
    missing = len(report.candidates) - len(ran)
    tail = f"; {missing} could not run on this machine" if missing else ""
    if not ran:
        return f"Nothing could run on this machine{tail}."
    if failed:
        return f"{len(failed)} of {len(ran)} candidates do not give PyTorch's answers{tail}."
    flips = sum(c.comparison.flips for c in ran if c.comparison)
    change = "no label changes" if not flips else f"{flips} label changes, all within what their precision allows"
    return f"All {len(ran)} candidates give PyTorch's answers: {change}{tail}."


def parity_markdown(report: ParityReport) -> str:
    """Verdict, one row per candidate, findings, flips, strata and what could not run."""
    lines = [
        f"# Parity: {report.verdict}",
        "",
        verdict_line(report),
        "",
        f"Reference: {report.reference['how']} (torch {report.reference.get('torch', '?')}). "
        f"Data: {report.source or 'samples'}: {report.samples} samples, {report.units} units "
        f"({report.labelled} labelled), and {report.probes} probes made from them.",
        "",
        *table(
            (
                "verdict",
                "runtime",
                "format",
                "precision",
                "bucket",
                "samples",
                "max abs error",
                "of tolerance",
                "cosine",
                "flips",
                metric_title(report.metric),
                "other ways to run it",
            ),
            [_parity_row(c, report) for c in report.ran],
        ),
        "",
        "`of tolerance` is the largest |a - b| / (atol + rtol x |largest score of the unit|); at most 1 agrees. "
        "`other ways to run it`: largest change of an answer in a batch, in another order, with other padding, "
        "in another bucket.",
    ]
    findings = [f"- **{c.verdict}** {c.name}: {reason}" for c in report.ran for reason in c.reasons]
    if findings:
        lines += ["", "## Findings", "", *findings]
    lines += _flips(report) + _strata(report)
    not_run = grouped_reasons([(c.name, c.reasons[0]) for c in report.candidates if c.verdict == "not run"])
    if not_run:
        lines += ["", "## Not run", ""]
        lines += [f"- {reason} ({some(names)})" for reason, names in not_run]
    return "\n".join(lines) + "\n"


def _parity_row(candidate: CandidateReport, report: ParityReport) -> tuple[object, ...]:
    bucket = lengths_name(candidate.lengths) if candidate.lengths else "any"
    start = (candidate.verdict, candidate.runtime, candidate.format, candidate.precision, bucket)
    found = candidate.comparison
    if found is None:
        return (*start, *["–"] * 7)
    error = next(e for e in found.outputs if e.output == report.task_output)
    moved = max((i.max_abs for i in candidate.invariances), default=None)
    return (
        *start,
        found.samples,
        f"{error.max_abs:.1e}",
        share(error.used),
        "–" if error.cosine is None else f"{error.cosine:.7f}",
        flips_cell(found),
        metric_cell(candidate, report.metric),
        "–" if moved is None else f"{moved:.1e}",
    )


def share(used: float) -> str:
    """A part of the tolerance: `0.12`, `3.4`, `> 1000`."""
    return "> 1000" if used > 1000 else f"{used:.2g}"


def metric_title(name: str) -> str:
    """A metric as people write it: `weighted F1`."""
    return name.replace("_f1", " F1").replace("_", " ")


def flips_cell(found: Comparison) -> str:
    """How many labels change, and how many signs where the task is a regression."""
    signs = "" if found.sign_flips is None else f", {found.sign_flips} signs"
    return f"{found.flips} of {found.units}{signs}"


def metric_cell(candidate: CandidateReport, name: str = "weighted_f1") -> str:
    """`71.20 (+0.00)` with the interval where labels differ; a dash without labels."""
    metrics = candidate.comparison.metrics if candidate.comparison else []
    found = next((m for m in metrics if m.metric == name), None)
    if found is None:
        return "–"
    interval = f" [{found.low:+.2f}, {found.high:+.2f}]" if found.low or found.high else ""
    return f"{found.candidate:.2f} ({found.difference:+.2f}{interval})"


def _flips(report: ParityReport) -> list[str]:
    flips = [(c, f) for c in report.ran if c.comparison for f in c.comparison.listed_flips]
    if not flips:
        return []
    flips.sort(key=lambda pair: -pair[1].margin)
    header = ("candidate", "unit", "reference", "candidate says", "label", "reference margin", "within noise")
    rows = [
        (c.name, f.unit, f.reference, f.candidate, f.label or "–", f"{f.margin:.1e}", "yes" if f.noise else "no")
        for c, f in flips[:SHOWN_FLIPS]
    ]
    return ["", f"## Label changes ({len(flips)} listed, widest margin first)", "", *table(header, rows)]


def _strata(report: ParityReport) -> list[str]:
    """Strata of the candidate that takes most of its tolerance: that is where to look first."""
    compared = [c for c in report.ran if c.comparison and c.comparison.outputs]
    if not compared:
        return []
    worst = max(compared, key=lambda c: max(e.used for e in c.comparison.outputs) if c.comparison else 0.0)
    assert worst.comparison is not None
    rows = [
        (s.kind, s.name, s.samples, s.units, f"{s.max_abs:.1e}", share(s.used), s.flips)
        for s in worst.comparison.strata
    ]
    header = ("part", "", "samples", "units", "max abs error", "of tolerance", "flips")
    return ["", f"## Parts of the data, for the candidate furthest off: {worst.name}", "", *table(header, rows)]


def bench_markdown(report: BenchReport) -> str:
    """Machine, one table per case, start-up and what could not run."""
    device = report.machine
    gpu = ", ".join(g.get("name", "?") for g in device["gpu"]) or "no GPU"
    lines = [
        "# Benchmark",
        "",
        f"Machine: {device['cpu']}, {device['cores']} cores, {device['memory_gib']} GiB, {gpu}; "
        f"load average {device['load_average']} at the start, {report.load_average_end} at the end"
        + (": **the machine was busy, trust ratios only**." if report.busy else "."),
        f"Versions: {', '.join(f'{k} {v}' for k, v in device['versions'].items())}, Python {device['python']}.",
        f"Threads: {report.threads or 'default'}; {report.rounds} interleaved rounds in shuffled order, "
        f"{1000 * report.pause_s:.0f} ms pause before each turn; inputs: {report.inputs}.",
        "",
        "`x eager` is eager time / own time taken per round, median [q25, q75] over rounds; above 1 is faster. "
        "Times are milliseconds. Absolute times do not transfer to other machines.",
    ]
    for case in report.cases:
        lines += ["", f"## {case.name}", "", _real_lengths(case), "", *table(BENCH_HEADER, bench_rows(case))]
        if stages := stage_rows(case):
            lines += ["", *table(STAGE_HEADER, stages)]
    if report.cold:
        rows = [(c.name, c.start_s, c.load_s, f"{c.first_call_ms:.1f}", f"{c.peak_mib:.0f}") for c in report.cold]
        header = ("candidate", "Python start s", "load s", "first answer ms", "peak MiB")
        lines += ["", "## Start-up, each in a fresh process", "", *table(header, rows)]
    if report.not_run:
        lines += ["", "## Not measured", ""]
        lines += [f"- {reason} ({some(names)})" for reason, names in grouped_reasons(report.not_run)]
    return "\n".join(lines) + "\n"


BENCH_HEADER = ("runtime", "format", "precision", "p50", "p90", "p99", "CPU p50", "items/s", "x eager", "x eager, CPU")


STAGE_HEADER = ("stage", "runtime", "precision", "runs per call", "rows per run", "ms per run")


def stage_rows(case: Case) -> list[tuple[str, ...]]:
    """Where the time of variants in stages goes, warm-up included; without `afresh` equal texts are encoded once."""
    rows: list[tuple[str, ...]] = []
    for row in case.rows:
        found = row.info.get("stages", {})
        most = max((s["calls"] for s in found.values()), default=0)
        for name, s in found.items():
            if calls := s["calls"]:
                cells = (f"{calls / most:.2f}", f"{s['rows'] / calls:.1f}", f"{s['ms'] / calls:.2f}")
                rows.append((name, row.runtime, row.precision, *cells))
    return rows


def bench_rows(case: Case) -> list[tuple[str, ...]]:
    """One row of cells per candidate, in the order of `BENCH_HEADER`."""
    return [
        (
            r.runtime,
            r.format,
            r.precision,
            f"{r.latency.p50:.2f}",
            f"{r.latency.p90:.2f}",
            f"{r.latency.p99:.2f}",
            f"{r.latency.cpu_p50:.2f}",
            f"{r.items_per_s:.0f}",
            f"{r.ratio.median:.2f} [{r.ratio.q25:.2f}, {r.ratio.q75:.2f}]",
            f"{r.cpu_ratio.median:.2f} [{r.cpu_ratio.q25:.2f}, {r.cpu_ratio.q75:.2f}]",
        )
        for r in case.rows
    ]


def _real_lengths(case: Case) -> str:
    parts = [
        f"{dim} {min(n)}" if min(n) == max(n) else f"{dim} {min(n)}–{max(n)}" for dim, n in case.real_lengths.items()
    ]
    return f"Real lengths of the items: {', '.join(parts)}." if parts else "Every item has the same length."
