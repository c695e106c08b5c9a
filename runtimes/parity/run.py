"""Proof that every runtime gives the answers of the PyTorch model: run reference and candidates, compare, judge.

The reference is the bundle's network in eager PyTorch, float32, on the CPU, each sample alone and unpadded. A
candidate is a variant on a backend with its options. How each one runs is the business of its session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mer_export.agreement.answers import Compared, Outputs, rows
from mer_export.agreement.compare import compare
from mer_export.agreement.flips import changed
from mer_export.agreement.policy import Policy, Verdict, gravest
from mer_export.agreement.verdict import Finding, findings
from mer_export.bucket import Bucket, bucket_for
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.samples import Sample, readable
from mer_export.errors import NotAvailableError, ParityError, UsageError
from mer_export.markdown import some
from mer_export.progress import SILENT, Progress
from mer_export.task import Task
from runtimes.backends.session import Session
from runtimes.backends.way import Way, eager, find_ways, grouped_reasons, why_broken
from runtimes.parity import invariance
from runtimes.parity.invariance import Runner
from runtimes.parity.probes import probes
from runtimes.parity.report import CandidateReport, ParityReport

log = logging.getLogger("mer")

KEPT = 32
"""Samples that the invariance passes use, spread over the lengths."""


def run_parity(
    bundle: Bundle,
    samples: Sequence[Sample],
    policy: Policy | None = None,
    candidates: Sequence[Way] | None = None,
    threads: int | None = None,
    source: str = "",
    progress: Progress = SILENT,
    strict_features: bool = False,
) -> ParityReport:
    """Compares every candidate with eager PyTorch. Samples of which there is nothing to read are left out and counted.

    Args:
        bundle: opened bundle.
        samples: real data, labelled where task metrics are wanted; kept in memory.
        policy: what counts as the same; None for the defaults.
        candidates: what to compare; None for everything in the bundle on every backend of this machine.
        threads: threads of every runtime; None leaves their defaults.
        source: where the samples come from, for the report.
        progress: shows each candidate as it runs.
        strict_features: samples that are not like those of training are an error, not a warning.

    Raises:
        UsageError: no samples, labels of another kind than the task's, or a tolerance for an output that does not
            exist.
        InputError: foreign features, where that is strict.
        NotAvailableError: PyTorch is missing, there is no reference then.
    """
    policy, manifest = policy or Policy(), bundle.manifest
    policy.check_names(s.name for s in manifest.contract.outputs)
    given, samples = len(samples), readable(samples, manifest.contract)
    if not samples:
        raise UsageError("parity needs at least one sample: pass --data with a non-empty split")
    for sample in samples:
        if sample.labels is not None:
            manifest.task.refuse_others(sample.labels, sample.id)
    features = FeatureCheck(manifest.features)
    features.add(samples)
    features.tell(strict_features)
    chosen = list(find_ways(bundle, threads) if candidates is None else candidates)
    for candidate in chosen:
        policy.rule(candidate.precision)
    items = _Items(bundle, samples, [c.bucket for c in chosen if c.bucket is not None])
    reports, kept = [], []
    with progress.over("parity", sum(not c.why_not for c in chosen), "candidate") as shown:
        for candidate in chosen:
            if not candidate.why_not:
                shown.begin(candidate.name)
            report, outputs = _examine(bundle, candidate, items, policy)
            reports.append(report)
            kept.append(outputs)
    _add_bucket_invariance(chosen, reports, kept, items, manifest.task, policy)
    for report in reports:
        report.verdict, report.reasons = judge(report, manifest.task, policy)
    return ParityReport(
        verdict=gravest(r.verdict for r in reports),
        system=manifest.system,
        task_output=manifest.task.output,
        metric=manifest.task.headline,
        labels=manifest.task.labels,
        weights_sha256=manifest.weights.sha256,
        reference=items.info | {"how": "eager PyTorch, float32, CPU, each sample alone and unpadded"},
        source=source,
        samples=len(samples),
        units=sum(len(s.units) for s in samples),
        labelled=sum(int(manifest.task.known(s.labels).sum()) for s in samples if s.labels is not None),
        left_out=given - len(samples),
        features=features.verdict,
        probes=len(items.probes),
        flips=_changed(items, kept, manifest.task),
        policy=policy,
        candidates=reports,
    )


def preview(bundle: Bundle, samples: Sequence[Sample], ways: Sequence[Way], strict_features: bool) -> dict[str, Any]:
    """What `run_parity` would do, without running anything: counts, candidates, what cannot run here and why."""
    manifest = bundle.manifest
    real = readable(samples, manifest.contract)
    features = FeatureCheck(manifest.features)
    features.add(real)
    features.tell(strict_features)
    buckets = dict.fromkeys([*manifest.contract.buckets, *(w.bucket for w in ways if w.bucket is not None)])
    not_run = grouped_reasons([(w.name, w.why_not) for w in ways if w.why_not])
    return {
        "samples": len(real),
        "units": sum(len(s.units) for s in real),
        "left_out": len(samples) - len(real),
        "probes": len(probes(real, manifest.contract, list(buckets))),
        "candidates": [w.name for w in ways if not w.why_not],
        "not_run": {reason: some(names) for reason, names in not_run},
        **features.summary(),
    }


def require(report: ParityReport, strict: bool = False) -> None:
    """Raises ParityError unless parity holds; with `strict` also where nothing here could run some variant."""
    failed = [c for c in report.candidates if c.verdict == "fail"]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise ParityError(f"parity failed: {failed[0].name}{more}: {failed[0].reasons[0]}")
    if not report.ran:
        raise ParityError("parity was not shown: no candidate could run on this machine, see mer doctor")
    ran = {c.variant for c in report.ran}
    missing = [c for c in report.candidates if c.variant not in ran]
    if strict and missing:
        raise ParityError(f"parity was not shown for {missing[0].name}: {missing[0].reasons[0]}")


def judge(report: CandidateReport, task: Task, policy: Policy) -> tuple[Verdict, list[str]]:
    """The verdict on one candidate, with a sentence per finding, gravest first."""
    if report.comparison is None:
        return report.verdict, report.reasons
    found: list[Finding] = [("warn", reason) for reason in report.reasons]
    found += findings(report.comparison, report.precision, task, policy)
    allowed = policy.rule(report.precision).flips_allowed(report.comparison.units)
    found += [
        (
            "fail" if i.used > 1 else "warn",
            f"{i.name}: answers move by up to {i.max_abs:.1e}, {i.flips} labels change",
        )
        for i in report.invariances
        if i.used > 1 or i.flips_beyond_noise > allowed
    ]
    order = sorted(found, key=lambda f: f[0] != "fail")
    return gravest(["pass", *(grade for grade, _ in order)]), [text for _, text in order]


def _changed(items: _Items, kept: Sequence[dict[int, Outputs]], task: Task) -> int:
    """Decisions on the data that some candidate changes, each of them once."""
    places = {
        (place, *flip)
        for outputs in kept
        for place, found in outputs.items()
        if place < items.real
        for flip in changed(rows(items.reference[place][task.output]), rows(found[task.output]), task)
    }
    return len(places)


class _Items:
    """Samples and probes with their reference outputs and strata; keeps results by position."""

    def __init__(self, bundle: Bundle, samples: Sequence[Sample], buckets: Sequence[Bucket]):
        self.contract: Contract = bundle.manifest.contract
        buckets = list(dict.fromkeys([*self.contract.buckets, *buckets]))
        self.probes = probes(samples, self.contract, buckets)
        self.samples = [*samples, *self.probes]
        self.real = len(samples)
        self.lengths = [s.lengths(self.contract) for s in self.samples]
        self.strata = [self._stratum(i, buckets) for i in range(len(self.samples))]
        with eager().open(bundle) as session:
            self.info = session.info
            self.reference = Runner(session, self.contract).alone(self.samples)

    def fitting(self, session: Session) -> list[int]:
        """Positions of the samples that a session's bucket holds."""
        bucket = session.bucket
        return [i for i, own in enumerate(self.lengths) if bucket is None or bucket.holds(own)]

    def _stratum(self, index: int, buckets: Sequence[Bucket]) -> dict[str, str]:
        bucket = bucket_for(self.lengths[index], buckets)
        return {
            "length": f"≤ {bucket.name}" if bucket is not None else "longer than every bucket",
            "modalities": " + ".join(self.samples[index].modalities(self.contract)),
            "units": "one unit" if len(self.samples[index].units) == 1 else "several units",
            "source": "real" if index < self.real else "made from real samples",
        }


def _examine(
    bundle: Bundle, candidate: Way, items: _Items, policy: Policy
) -> tuple[CandidateReport, dict[int, Outputs]]:
    """Runs one candidate; returns its report (not judged yet) and its outputs by sample position."""
    report = CandidateReport(
        name=candidate.name,
        runtime=candidate.runtime,
        variant=candidate.variant,
        sha256=bundle.manifest.files[bundle.find(candidate.variant).model].sha256 if candidate.variant else "",
        format=candidate.format,
        precision=candidate.precision,
        lengths=candidate.bucket,
        batch=candidate.fixed,
        verdict="not run",
        reasons=[candidate.why_not] if candidate.why_not else [],
    )
    if candidate.why_not:
        return report, {}
    start = time.perf_counter()
    outputs: dict[int, Outputs] = {}
    try:
        with candidate.open(bundle) as session:
            report.info = session.info
            outputs = _measure(session, report, items, bundle.manifest.task, policy)
        report.reasons += _stale(bundle, candidate.variant)
    except NotAvailableError as error:
        report.reasons = [str(error)]
    except Exception as error:
        log.debug("%s failed", candidate.name, exc_info=True)
        report.verdict, report.reasons = "fail", [why_broken(error)]
    report.seconds = round(time.perf_counter() - start, 3)
    return report, outputs


def _measure(
    session: Session, report: CandidateReport, items: _Items, task: Task, policy: Policy
) -> dict[int, Outputs]:
    runner, places = Runner(session, items.contract), items.fitting(session)
    if not places:
        report.reasons = ["no sample and no probe fits its bucket: export a longer one"]
        return {}
    report.too_long = sum(i < items.real for i in range(len(items.samples))) - sum(i < items.real for i in places)
    samples = [items.samples[i] for i in places]
    alone = runner.alone(samples)
    compared = [
        Compared(items.samples[i], items.reference[i], found, items.strata[i], i < items.real)
        for i, found in zip(places, alone, strict=True)
    ]
    tolerance = policy.tolerance(report.precision, task.output)
    spread = invariance.spread([items.lengths[i] for i in places], KEPT)
    report.invariances = invariance.measure(
        runner, [replace(compared[i], reference=alone[i]) for i in spread], task, tolerance
    )
    report.comparison = compare(compared, task, policy, report.precision)
    return dict(zip(places, alone, strict=True))


def _add_bucket_invariance(
    candidates: Sequence[Way],
    reports: Sequence[CandidateReport],
    kept: Sequence[dict[int, Outputs]],
    items: _Items,
    task: Task,
    policy: Policy,
) -> None:
    """Holds the same sample in different buckets of one kind of artefact against each other."""
    groups: dict[Way, list[int]] = {}
    for i, candidate in enumerate(candidates):
        if kept[i] and candidate.variant:
            groups.setdefault(candidate.in_any_bucket, []).append(i)
    for members in groups.values():
        # The one that agrees with the reference and holds most samples, so that a wrong bucket is itself blamed.
        anchor = min(members, key=lambda i: (_worst(reports[i]) > 1, -len(kept[i])))
        for i in members:
            common = sorted(set(kept[i]) & set(kept[anchor]))
            if i == anchor or not common:
                continue
            pairs = [Compared(items.samples[k], kept[anchor][k], kept[i][k], real=k < items.real) for k in common]
            tolerance = policy.tolerance(reports[i].precision, task.output)
            reports[i].invariances.append(invariance.difference("another bucket", pairs, task, tolerance))


def _worst(report: CandidateReport) -> float:
    """The largest part of its tolerance that any output takes."""
    return max((e.used for e in report.comparison.outputs), default=0.0) if report.comparison else 0.0


def _stale(bundle: Bundle, variant: str | None) -> list[str]:
    made_from = bundle.find(variant).options.get("weights") if variant else None
    if made_from in (None, bundle.manifest.weights.sha256):
        return []
    return ["it was exported from other weights than the bundle's: run mer export again"]
