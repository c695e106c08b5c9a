"""One self-contained HTML page per bundle: what the model is, whether its variants are right, how fast they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.contract import TensorSpec
from mer_export.errors import BundleError
from mer_export.evaluation import Evaluation, read_evaluations
from mer_export.metrics import find
from mer_export.report import Report
from runtimes.backends.way import grouped_reasons
from runtimes.pages import charts
from runtimes.pages.evaluation import shown
from runtimes.pages.page import render_page
from runtimes.parity.report import (
    CALIBRATION,
    SHOWN_FLIPS,
    CandidateReport,
    ParityReport,
    calibration_rows,
    verdict_line,
)
from runtimes.predict.machine_profile import encoder_table
from runtimes.predict.robustness import RobustnessReport
from runtimes.speed.bench_report import BENCH_HEADER, CHAIN, BenchReport, Case, bench_rows, chain_table

REPORT = "reports/report.html"
TITLES = {
    "pass": "Same answers as PyTorch",
    "warn": "Same answers as PyTorch, with remarks",
    "fail": "Not the answers of PyTorch",
    "not run": "Parity could not be shown here",
    "missing": "Parity has not been checked",
    "stale": "Parity was checked for other weights",
}

Kind = TypeVar("Kind", bound=Report)


def write_report(bundle: Bundle | Path | str) -> Path:
    """Renders reports/report.html from what the bundle holds and commits it; returns its path.

    Raises:
        NotAvailableError: jinja2 or matplotlib is missing.
        BundleError: a file of the bundle is damaged.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    page = render(opened)
    with opened.commit() as change:
        change.write(REPORT, page)
    return opened.root / REPORT


def render(bundle: Bundle) -> str:
    """The page as HTML text."""
    return render_page("report.html", content(bundle))


def content(bundle: Bundle) -> dict[str, Any]:
    """Everything the template shows."""
    manifest = bundle.manifest
    problems: list[str] = []
    parity = _read(bundle, ParityReport, problems)
    bench = _read(bundle, BenchReport, problems)
    missing = _read(bundle, RobustnessReport, problems)
    evaluation = _evaluations(bundle, problems)
    measured = list(dict.fromkeys(n for e in evaluation for n in e.metrics))
    weights = manifest.weights.sha256
    state = parity_state(parity, weights)
    unchecked = parity.unchecked(manifest) if parity else []
    return {
        "manifest": manifest,
        "title": f"{manifest.system} · {manifest.variant}",
        "system": registry.get(manifest.system),
        "weights": {"sha256": weights, "mib": manifest.weights.size / 2**20},
        "inputs": [_tensor(s) for s in manifest.contract.inputs],
        "outputs": [_tensor(s) for s in manifest.contract.outputs],
        "variants": [
            {
                "variant": v,
                "mib": manifest.files[v.model].size / 2**20,
                "unchecked": v.name in unchecked,
            }
            for v in manifest.variants
        ],
        "provenance": _flat(manifest.provenance),
        "state": state,
        "problems": problems,
        "headline": TITLES[state],
        "sentence": verdict_line(parity) if parity else "",
        "facts": _facts(parity, bench, evaluation, manifest.task.headline),
        "metric": find(parity.metric if parity else manifest.task.headline),
        "training": _training(bundle),
        "evaluation": evaluation,
        "several_semantics": len({e.semantics for e in evaluation}) > 1,
        "whole_metrics": [n for n in measured if "/" not in n],
        "label_metrics": [n for n in measured if "/" in n],
        "class_tables": shown(evaluation[-1].classes) if evaluation else [],
        "missing": missing,
        "missing_stale": missing is not None and missing.weights_sha256 != weights,
        "missing_chart": charts.robustness_chart(missing, manifest.task.headline) if missing else "",
        "missing_rows": _missing_rows(missing) if missing else [],
        "parity": parity,
        "parity_chart": charts.parity_chart(parity) if parity else "",
        "parity_rows": [_parity_row(c, parity) for c in parity.ran] if parity else [],
        "calibration": calibration_rows(parity) if parity else [],
        "calibration_header": CALIBRATION,
        "furthest": _furthest(parity),
        "flips": _flips(parity),
        "not_compared": grouped_reasons(
            [(c.name, c.reasons[0]) for c in parity.candidates if c.verdict == "not run"] if parity else []
        ),
        "bench": bench,
        "bench_stale": bool(bench) and bench.weights_sha256 != weights if bench else False,
        "bench_header": BENCH_HEADER,
        "cases": [_case(c) for c in bench.cases] if bench else [],
        "encoder_tables": [encoder_table(bench.encoders), chain_table(bench)] if bench and bench.encoders else [],
        "chain": CHAIN,
        "not_timed": grouped_reasons(bench.not_run) if bench else [],
    }


def parity_state(parity: ParityReport | None, weights: str) -> str:
    """A key of `TITLES`: the verdict on weights of this SHA-256, `missing`, or `stale` where it is of others."""
    if parity is None:
        return "missing"
    return parity.verdict if parity.weights_sha256 == weights else "stale"


def _read(bundle: Bundle, kind: type[Kind], problems: list[str]) -> Kind | None:
    """A report of the bundle; one that cannot be read counts as missing and is named in `problems`."""
    try:
        return kind.load(bundle)
    except BundleError as error:
        problems.append(str(error))
        return None


def _facts(
    parity: ParityReport | None, bench: BenchReport | None, evaluation: list[Evaluation], metric: str
) -> list[tuple[str, str, str]]:
    """(number, what it is, remark) shown on top."""
    facts = []
    full = [c for c in parity.ran if c.precision == "fp32" and c.format != "eager" and c.comparison] if parity else []
    if full:
        error = max((e for c in full if c.comparison for e in c.comparison.outputs), key=lambda e: e.used)
        facts.append((f"{error.max_abs:.1e}", "largest fp32 error", f"{error.used:.0%} of what is allowed"))
    if parity and parity.ran:
        facts.append((str(parity.changed), "labels change", f"of {parity.units:,} compared".replace(",", " ")))
    if bench and bench.cases:
        least = min(c.batch for c in bench.cases)
        case = [c for c in bench.cases if c.batch == least][-1]
        best = max(case.rows, key=lambda r: r.ratio.median)
        facts.append((f"{best.ratio.median:.1f}×", f"{best.runtime} against eager", case.name))
    if evaluation:
        last = evaluation[-1]
        value = last.metrics.get(metric, float("nan"))
        facts.append((find(metric).printed(value), find(metric).title, f"{last.split} split"))
    return facts


def _training(bundle: Bundle) -> dict[str, Any] | None:
    """Curve and length of the training, where this bundle was trained."""
    name = "train/metrics.jsonl"
    if name not in bundle.manifest.files:
        return None
    records = [json.loads(line) for line in bundle.path(name).read_text().splitlines() if line.strip()]
    if not records:
        return None
    kept = bundle.manifest.provenance.get("epoch")
    return {
        "epochs": records[-1]["epoch"],
        "kept": kept,
        "seconds": sum(r.get("seconds", 0.0) for r in records),
        "chart": charts.training_chart(records, bundle.manifest.task.headline, kept),
    }


def _evaluations(bundle: Bundle, problems: list[str]) -> list[Evaluation]:
    """Those of the bundle; what cannot be read counts as missing and is named in `problems`."""
    try:
        return read_evaluations(bundle)
    except BundleError as error:
        problems.append(str(error))
        return []


def _missing_rows(report: RobustnessReport) -> list[list[str]]:
    rows = [[r.name, *(find(n).printed(v[i]) for n, v in report.metrics.items())] for i, r in enumerate(report.rates)]
    areas = [["area", *(find(n).printed(a) for n, a in report.areas.items())]] if report.areas else []
    return rows + areas


def _tensor(spec: TensorSpec) -> dict[str, str]:
    notes = [spec.description, f"real length of {spec.counts}" if spec.counts else ""]
    notes.append(f"0 to {spec.below - 1}" if spec.below else "")
    return {
        "name": spec.name,
        "dtype": spec.dtype,
        "dims": " × ".join(str(d) for d in spec.dims),
        "modality": spec.modality or "",
        "note": "; ".join(n for n in notes if n),
    }


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as (path, value) lines."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key} ")
        elif value is not None:
            lines.append((prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return lines


def _parity_row(candidate: CandidateReport, parity: ParityReport) -> dict[str, Any]:
    found = candidate.comparison
    error = next((e for e in found.outputs if e.output == parity.task_output), None) if found else None
    return {
        "candidate": candidate,
        "error": error,
        "metric": next((m for m in found.metrics if m.metric == parity.metric), None) if found else None,
        "moved": max((i.max_abs for i in candidate.invariances), default=None),
    }


def _furthest(parity: ParityReport | None) -> CandidateReport | None:
    """The candidate that takes most of its tolerance: its strata say where to look first."""
    compared = [c for c in parity.ran if c.comparison and c.format != "eager"] if parity else []
    return max(compared, key=lambda c: max(e.used for e in c.comparison.outputs) if c.comparison else 0, default=None)


def _flips(parity: ParityReport | None) -> list[tuple[str, Any]]:
    found = [(c.name, f) for c in (parity.ran if parity else []) if c.comparison for f in c.comparison.listed_flips]
    return sorted(found, key=lambda pair: -pair[1].margin)[:SHOWN_FLIPS]


def _case(case: Case) -> dict[str, Any]:
    return {"case": case, "chart": charts.latency_chart(case), "rows": bench_rows(case)}
