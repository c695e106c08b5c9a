"""What parity found: the record of every candidate, and how it reads."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mer_export.agreement.compare import Comparison
from mer_export.agreement.policy import Policy, Verdict, gravest
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Manifest, Strict
from mer_export.markdown import some, table
from mer_export.metrics import find
from mer_export.report import Report
from runtimes.backends.way import grouped_reasons
from runtimes.parity.invariance import Invariance
from runtimes.predict.verdicts import PATH

SHOWN_FLIPS = 20


class CandidateReport(Strict):
    """One candidate: what ran, how it compares, and the verdict with its reasons."""

    name: str
    runtime: str
    variant: str | None
    sha256: str = ""
    """Of the variant's file: which one was judged."""
    format: str
    precision: str
    """Precision it computes in: the variant's, or what that is reduced to."""
    lengths: Bucket | None
    batch: int
    verdict: Verdict
    reasons: list[str] = Field(default_factory=list)
    info: dict[str, Any] = Field(default_factory=dict)
    too_long: int = 0
    """Samples left out because they are longer than the bucket."""
    comparison: Comparison | None = None
    invariances: list[Invariance] = Field(default_factory=list)
    seconds: float = 0.0
    earlier: bool = False
    """Whether an earlier run judged it, as the last one was restricted to another runtime."""


class ParityReport(Report):
    """Everything that `run_parity` found."""

    schema_version: int = 1
    verdict: Verdict
    system: str
    task_output: str
    metric: str = "weighted_f1"
    """The metric that the task is judged by."""
    labels: tuple[str, ...]
    weights_sha256: str
    reference: dict[str, Any]
    source: str
    samples: int
    units: int
    labelled: int
    left_out: int = 0
    """Samples of which there is nothing to read."""
    features: str = "not known"
    """How the samples compare with the features of training."""
    probes: int
    flips: int | None = None
    """Decisions on the data that some candidate changes, each of them once; None in reports of earlier releases."""
    policy: Policy
    candidates: list[CandidateReport]

    @classmethod
    def path(cls) -> str:
        return PATH

    @classmethod
    def command(cls) -> str:
        return "mer parity"

    def page(self) -> str:
        return parity_markdown(self)

    @property
    def ran(self) -> list[CandidateReport]:
        """Candidates that this machine could run."""
        return [c for c in self.candidates if c.verdict != "not run"]

    def beside(self, earlier: ParityReport | None, bundle: Bundle) -> ParityReport:
        """This report with what an earlier one says of candidates that were not asked now, of the same files: that they
        failed, and what else was judged by the same policy."""
        if earlier is None or earlier.weights_sha256 != self.weights_sha256:
            return self
        asked, alike = {c.name for c in self.candidates}, earlier.policy == self.policy
        now = {v.name: bundle.manifest.files[v.model].sha256 for v in bundle.manifest.variants} | {None: ""}
        kept = [
            c.model_copy(update={"earlier": True})
            for c in earlier.candidates
            if c.name not in asked and now.get(c.variant) == c.sha256 and (alike or c.verdict == "fail")
        ]
        candidates = [*self.candidates, *kept]
        # Which of the labels that change are the same ones, nobody knows any more.
        flips = None if any(c.comparison and c.comparison.flips for c in kept) else self.flips
        verdict = gravest(c.verdict for c in candidates)
        return self.model_copy(update={"candidates": candidates, "verdict": verdict, "flips": flips})

    def unchecked(self, manifest: Manifest) -> list[str]:
        """Variants whose file as it is now was not asked about: exported since, for the first time or again."""
        asked = {(c.variant, c.sha256) for c in self.candidates}
        now = {v.name: manifest.files[v.model].sha256 for v in manifest.variants}
        # Reports of earlier releases do not say which file it was.
        return [name for name, digest in now.items() if asked.isdisjoint([(name, digest), (name, "")])]

    @property
    def changed(self) -> int:
        """How many labels change; a report of an earlier release counts one for each candidate that changes it."""
        if self.flips is not None:
            return self.flips
        return sum(c.comparison.flips for c in self.ran if c.comparison)


def verdict_line(report: ParityReport) -> str:
    """What parity found, in one sentence."""
    ran, failed = report.ran, [c for c in report.candidates if c.verdict == "fail"]
    missing = len(report.candidates) - len(ran)
    tail = f"; {missing} could not run on this machine" if missing else ""
    if not ran:
        return f"Nothing could run on this machine{tail}."
    if failed:
        return f"{len(failed)} of {len(ran)} candidates do not give PyTorch's answers{tail}."
    change = "no label changes"
    if report.changed:
        change = f"{report.changed} of {report.units} labels change somewhere, within what their precision allows"
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
        f"({report.labelled} labelled), and {report.probes} probes made from them{_left_out(report)}. "
        f"Features: {report.features}.",
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
                find(report.metric).title,
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
    lines += _flips(report) + _calibration(report) + _strata(report)
    not_run = grouped_reasons([(c.name, c.reasons[0]) for c in report.candidates if c.verdict == "not run"])
    if not_run:
        lines += ["", "## Not run", ""]
        lines += [f"- {reason} ({some(names)})" for reason, names in not_run]
    return "\n".join(lines) + "\n"


def _left_out(report: ParityReport) -> str:
    return f"; {report.left_out} samples have nothing to read and are left out" if report.left_out else ""


def _parity_row(candidate: CandidateReport, report: ParityReport) -> tuple[object, ...]:
    bucket = candidate.lengths.name if candidate.lengths is not None else "any"
    verdict = f"{candidate.verdict} (earlier run)" if candidate.earlier else candidate.verdict
    start = (verdict, candidate.runtime, candidate.format, candidate.precision, bucket)
    found = candidate.comparison
    if found is None:
        return (*start, *["–"] * 7)
    error = next(e for e in found.outputs if e.output == report.task_output)
    moved = max((i.max_abs for i in candidate.invariances), default=None)
    return (
        *start,
        found.samples,
        f"{error.max_abs:.1e}",
        used_part(error.used),
        "–" if error.cosine is None else f"{error.cosine:.7f}",
        flips_cell(found),
        metric_cell(candidate, report.metric),
        "–" if moved is None else f"{moved:.1e}",
    )


def used_part(used: float) -> str:
    """A part of the tolerance: `0.12`, `3.4`, `> 1000`."""
    return "> 1000" if used > 1000 else f"{used:.2g}"


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
    metric = find(name)
    interval = f" [{metric.change(found.low)}, {metric.change(found.high)}]" if found.low or found.high else ""
    return f"{metric.text(found.candidate)} ({metric.change(found.difference)}{interval})"


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


def calibration_rows(report: ParityReport) -> list[tuple[str, ...]]:
    """Each candidate's ECE in points, Brier score and mean entropy in bits, each with its change from the reference."""
    found = [(c.name, c.comparison.calibration) for c in report.ran if c.comparison and c.comparison.calibration]
    return [
        (
            name,
            _moved(drift.reference.ece, drift.candidate.ece, 2),
            _moved(drift.reference.brier, drift.candidate.brier, 4),
            _moved(drift.reference.entropy, drift.candidate.entropy, 4),
            drift.always or "–",
        )
        for name, drift in found
    ]


CALIBRATION = ("candidate", "ECE, points", "Brier score", "entropy, bits", "every unit is")


def _moved(before: float | None, after: float | None, digits: int) -> str:
    if before is None or after is None:
        return "–"
    return f"{after:.{digits}f} ({after - before:+.{digits}f})"


def _calibration(report: ParityReport) -> list[str]:
    rows = calibration_rows(report)
    return ["", "## What the probabilities are worth", "", *table(CALIBRATION, rows)] if rows else []


def _strata(report: ParityReport) -> list[str]:
    """Strata of the candidate that takes most of its tolerance: that is where to look first."""
    compared = [c for c in report.ran if c.comparison and c.comparison.outputs]
    if not compared:
        return []
    worst = max(compared, key=lambda c: max(e.used for e in c.comparison.outputs) if c.comparison else 0.0)
    assert worst.comparison is not None
    rows = [
        (s.kind, s.name, s.samples, s.units, f"{s.max_abs:.1e}", used_part(s.used), s.flips)
        for s in worst.comparison.strata
    ]
    header = ("part", "", "samples", "units", "max abs error", "of tolerance", "flips")
    return ["", f"## Parts of the data, for the candidate furthest off: {worst.name}", "", *table(header, rows)]
