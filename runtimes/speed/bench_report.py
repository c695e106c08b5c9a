"""What a benchmark measured: the record of every case, and how it reads."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mer_export.bucket import Bucket
from mer_export.bundle import Strict
from mer_export.markdown import some, table
from mer_export.report import Report
from runtimes.backends.way import grouped_reasons
from runtimes.predict.machine_profile import EncoderRow, encoder_table, ms_text
from runtimes.speed.start_up import ColdStart
from runtimes.speed.timing import PAUSE, Latency, Quartiles, WarmUp

BASE = "torch: eager"
UNPADDED = "torch: eager unpadded"
BENCH_HEADER = ("runtime", "format", "precision", "p50", "p90", "p99", "CPU p50", "items/s", "x eager", "x eager, CPU")

CHAIN = (
    "From raw things to labels: the fastest way of each part in its longest bucket. Reading files, tokens and "
    "spectrograms come on top."
)
STAGE_HEADER = ("stage", "runtime", "precision", "runs per call", "rows per run", "ms per run")


class Row(Strict):
    """One way to run in one case. `ratio` is eager time / own time per round: above 1 is faster than eager."""

    name: str
    runtime: str
    variant: str | None
    format: str
    precision: str
    info: dict[str, Any]
    load_s: float
    warm_up: WarmUp
    latency: Latency
    items_per_s: float
    ratio: Quartiles
    cpu_ratio: Quartiles


class Case(Strict):
    """One bucket and batch size. `real_lengths` are the lengths of the items inside the padding."""

    lengths: Bucket
    batch: int
    real_lengths: dict[str, list[int]]
    rows: list[Row]

    @property
    def name(self) -> str:
        return f"{self.lengths.name}, batch {self.batch}"


class BenchReport(Report):
    """Everything that `run_bench` measured, and what it could not."""

    schema_version: int = 1
    system: str
    weights_sha256: str
    machine: dict[str, Any]
    load_average_end: float
    threads: int | None
    rounds: int
    pause_s: float = PAUSE
    inputs: str
    cases: list[Case]
    encoders: list[EncoderRow] = Field(default_factory=list)
    cold: list[ColdStart] = Field(default_factory=list)
    not_run: list[tuple[str, str]] = Field(default_factory=list)
    """(way or case, reason)"""

    @classmethod
    def path(cls) -> str:
        return "reports/bench.json"

    @classmethod
    def command(cls) -> str:
        return "mer bench"

    def page(self) -> str:
        return bench_markdown(self)

    @property
    def busy(self) -> bool:
        """Whether something else ran beside the measurement: more runnable processes than cores."""
        return max(self.machine["load_average"], self.load_average_end) > self.machine["cores"]


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
    if report.encoders:
        lines += ["", "## Encoders", "", "Their networks alone, on random values.", ""]
        lines += table(*encoder_table(report.encoders))
        lines += ["", CHAIN, "", *table(*chain_table(report))]
    if report.cold:
        rows = [(c.name, c.start_s, c.load_s, f"{c.first_call_ms:.1f}", f"{c.peak_mib:.0f}") for c in report.cold]
        header = ("candidate", "Python start s", "load s", "first answer ms", "peak MiB")
        lines += ["", "## Start-up, each in a fresh process", "", *table(header, rows)]
    if report.not_run:
        lines += ["", "## Not measured", ""]
        lines += [f"- {reason} ({some(names)})" for reason, names in grouped_reasons(report.not_run)]
    return "\n".join(lines) + "\n"


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


def chain_table(report: BenchReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: the fastest way of every part, and what they take together."""
    batches = sorted({c.batch for c in report.cases})
    names = list(dict.fromkeys((r.input, r.encoder) for r in report.encoders))
    parts = {" ".join(n): [_encoding(report, n, b) for b in batches] for n in names}
    parts["fusion"] = [_fusion(report, b) for b in batches]
    rows = [(name, *(f"{ms_text(ms)} {way}".strip() for ms, way in cells)) for name, cells in parts.items()]
    whole = [[cells[i][0] for cells in parts.values()] for i in range(len(batches))]
    sums = [sum(ms) if None not in ms else None for ms in whole]  # type: ignore[arg-type]
    return ("part", *(f"batch {b}, ms an utterance" for b in batches)), [*rows, ("together", *map(ms_text, sums))]


def _encoding(report: BenchReport, name: tuple[str, str], batch: int) -> tuple[float | None, str]:
    """Milliseconds an utterance of an encoder in its longest bucket, and what runs it."""
    own = [r for r in report.encoders if (r.input, r.encoder) == name and batch in r.item_ms]
    longest = [r for r in own if r.lengths == max(o.lengths for o in own)]
    best = min(longest, key=lambda r: r.item_ms[batch], default=None)
    return (best.items * best.item_ms[batch], f"{best.runtime} {best.precision}") if best else (None, "")


def _fusion(report: BenchReport, batch: int) -> tuple[float | None, str]:
    cases = [c for c in report.cases if c.batch == batch]
    rows = max(cases, key=lambda c: c.lengths).rows
    best = min([r for r in rows if r.variant] or rows, key=lambda r: r.latency.p50)
    return best.latency.p50 / batch, f"{best.runtime} {best.precision}"


def _real_lengths(case: Case) -> str:
    parts = [
        f"{dim} {min(n)}" if min(n) == max(n) else f"{dim} {min(n)}–{max(n)}" for dim, n in case.real_lengths.items()
    ]
    return f"Real lengths of the items: {', '.join(parts)}." if parts else "Every item has the same length."
