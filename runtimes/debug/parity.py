"""Where a variant goes wrong: its worst sample, the modules one by one, and the smallest sample that shows it.

The reference is PyTorch's own graph of the network, captured anew and run operator by operator: its values have the
names that the exported file has. It is first held against eager PyTorch, so that an error of capturing is called that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.agreement.answers import Compared, Outputs
from mer_export.agreement.compare import compare, output_errors
from mer_export.agreement.error import OutputError
from mer_export.agreement.policy import Policy, gravest
from mer_export.agreement.verdict import findings
from mer_export.bundle import Bundle, Variant, replacing
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.example_inputs import repeat
from mer_export.data.samples import Sample, readable
from mer_export.errors import NotAvailableError, ParityError, UnsupportedError, UsageError
from mer_export.exporters import exported_program, onnx, precision
from mer_export.exporters.export import job_of, wanted_variant
from mer_export.exporters.export_job import ExportJob
from mer_export.machine import peak_mib
from mer_export.progress import SILENT, Progress
from mer_export.registry import resolve
from runtimes.backends.session import Artefact, Session
from runtimes.backends.table import backend_problem, find_backend, known_backends
from runtimes.backends.way import Way, eager, find_ways
from runtimes.debug.captured import Captured
from runtimes.debug.frozen import frozen_in
from runtimes.debug.keep import block_list
from runtimes.debug.modules import blame, compare_modules
from runtimes.debug.onnx_side import OnnxSide
from runtimes.debug.report import DebugReport
from runtimes.debug.smallest import smallest
from runtimes.debug.trace_side import TraceSide
from runtimes.debug.values import Arrays, Shelf, Side
from runtimes.parity.invariance import Runner
from runtimes.parity.probes import probes

KNOWN = 0.5
"""Part of the values of a file that the reference must know: another release of PyTorch may call them otherwise."""


@dataclass
class Candidate:
    """A variant on a backend, and its file, which may lie outside of the bundle."""

    bundle: Bundle
    variant: Variant
    way: Way
    artefact: Artefact

    @cached_property
    def job(self) -> ExportJob:
        """With the network, which is not loaded before it is asked for."""
        return job_of(self.bundle, self.variant)

    @property
    def contract(self) -> Contract:
        return self.artefact.contract

    @property
    def written(self) -> bool:
        return bool(self.variant.model)

    def open(self) -> Session:
        if self.written:
            return self.way.open(self.bundle)
        kind: type[Session] = resolve(find_backend(self.way.backend).session)
        return kind(self.artefact, self.way.options)


@contextmanager
def candidate_of(bundle: Bundle, variant: Variant, runtime: str | None, reduced: str | None) -> Iterator[Candidate]:
    """A variant on a backend of this machine; one without a file is made for as long as this lasts.

    Raises:
        UsageError: the runtime does not run it.
        UnsupportedError: its format keeps no values apart, or it is in stages.
        NotAvailableError: nothing here runs it.
    """
    if variant.format not in SIDES:
        raise UnsupportedError(f"{variant.name}: {SEALED[variant.format]}")
    if variant.stages:
        raise UnsupportedError(f"{variant.name} is in stages: export the same in one piece and debug that")
    with tempfile.TemporaryDirectory() as folder:
        way = _way(bundle, variant, runtime, reduced)
        path = bundle.variant_files(variant) if variant.model else Path(folder) / "model.onnx"
        contract, lengths = bundle.manifest.contract, variant.lengths
        artefact = Artefact(
            path, contract, lengths, variant.batch, variant.precision, variant.options, digest=variant.name
        )
        candidate = Candidate(bundle, variant, way, artefact)
        if not variant.model:
            if candidate.job.graph is None:
                raise UsageError(
                    f"{variant.name} is made of fp32 of the bundle's weights: run mer export --format onnx"
                )
            precision.write(candidate.job, candidate.job.graph.path, path, gated=False)
        yield candidate


def _way(bundle: Bundle, variant: Variant, runtime: str | None, reduced: str | None) -> Way:
    if variant.model:
        ways = [w for w in find_ways(bundle, runtime=runtime) if w.variant == variant.name]
    else:
        backends = known_backends().values() if runtime is None else [find_backend(runtime)]
        ways = [Way.of(variant, b.name, why_not=backend_problem(b.name)) for b in backends if b.takes(variant)]
    ways = [w for w in ways if reduced in (None, w.precision)]
    able = [w for w in ways if not w.why_not]
    if not ways:
        who, what = f"{runtime} does not run" if runtime else "no runtime runs", f" in {reduced}" if reduced else ""
        raise UsageError(f"{who} {variant.name}{what}: leave {'--precision' if reduced else '--runtime'} out")
    if not able:
        raise NotAvailableError(f"{variant.name} does not run here: {ways[0].why_not}")
    return able[0]


def debug_parity(
    bundle: Bundle,
    name: str,
    samples: Sequence[Sample],
    policy: Policy | None = None,
    runtime: str | None = None,
    reduced: str | None = None,
    out: Path | None = None,
    progress: Progress = SILENT,
) -> DebugReport:
    """Finds the first module of a variant that makes an error, on the sample where its outputs are furthest off.

    Args:
        bundle: opened bundle.
        name: a variant of it, or a reduced precision of an fp32 ONNX variant, which is then made without its gate.
        samples: real data.
        policy: what counts as the same.
        runtime: what runs it; None for the first backend here that does.
        reduced: what an fp32 file is computed in by a runtime that can.
        out: where the smallest sample that shows a difference is written, as .npz.
        progress: shows the steps.

    Raises:
        UsageError: no such variant, or no sample that fits it.
        UnsupportedError: its values cannot be told apart.
        NotAvailableError: nothing on this machine runs it.
    """
    variant = wanted_variant(bundle, name)
    return debug_variant(bundle, variant, samples, policy, runtime, reduced, out, progress=progress)


def debug_variant(
    bundle: Bundle,
    variant: Variant,
    samples: Sequence[Sample],
    policy: Policy | None = None,
    runtime: str | None = None,
    reduced: str | None = None,
    out: Path | None = None,
    block: bool = True,
    progress: Progress = SILENT,
) -> DebugReport:
    """As `debug_parity`, of a variant that need not have a file; without `block` no block list is made."""
    began, policy = time.perf_counter(), policy or Policy()
    with candidate_of(bundle, variant, runtime, reduced) as candidate, progress.over("debug", None, "step") as shown:
        shown.begin("samples")
        report, worst, least = _worst(candidate, samples, policy)
        shown.begin(f"modules of {worst.sample.id}")
        with tempfile.TemporaryDirectory() as folder:
            _examine(candidate, worst, policy, report, Path(folder), block, shown)
        if report.verdict == "fail" and out:
            _write(candidate, least, out)
            report.file = str(out)
    report.seconds, report.peak_mib = round(time.perf_counter() - began, 2), round(peak_mib())
    return report


def require(report: DebugReport) -> None:
    """Raises ParityError where the variant differs; says in which module."""
    if report.verdict == "fail":
        where = f"first in {report.module}" if report.module else "in no module by itself"
        raise ParityError(f"{report.variant} differs, {where}: {report.reasons[0]}")


def _worst(candidate: Candidate, samples: Sequence[Sample], policy: Policy) -> tuple[DebugReport, Compared, Compared]:
    """Runs everything; returns the report so far, the worst sample and the smallest that shows a failure."""
    bundle, contract = candidate.bundle, candidate.contract
    task, lengths = bundle.manifest.task, candidate.variant.lengths
    real = readable(samples, contract)
    fitting = [s for s in real if lengths.holds(s.lengths(contract))]
    if not fitting:
        raise UsageError(f"none of {len(real)} samples fits {lengths.name}: give --data with shorter ones")
    made = [s for s in probes(fitting, contract, [lengths]) if lengths.holds(s.lengths(contract))]
    precision = candidate.way.precision
    with eager().open(bundle) as one, candidate.open() as other:
        runners = Runner(one, contract), Runner(other, contract)

        def run(sample: Sample, is_real: bool = False) -> Compared:
            reference, found = (r.alone([sample])[0] for r in runners)
            return Compared(sample, reference, found, real=is_real)

        items = [*(run(s, True) for s in fitting), *(run(s) for s in made)]
        found = findings(compare(items, task, policy, precision), precision, task, policy)
        worst = max(items, key=lambda i: _furthest(i, policy, precision).used)
        error = _furthest(worst, policy, precision)
        verdict = gravest(["pass", *(grade for grade, _ in found)])
        least = worst
        if verdict == "fail":
            enough = min(1.0, error.used / 2)
            small = smallest(worst.sample, contract, lambda s: _furthest(run(s), policy, precision).used > enough)
            least = run(small)
    report = DebugReport(
        variant=candidate.variant.name,
        runtime=candidate.way.runtime,
        precision=precision,
        written=candidate.written,
        verdict=verdict,
        reasons=[text for _, text in sorted(found, key=lambda f: f[0] != "fail")],
        samples=len(items),
        sample=worst.sample.id,
        lengths=dict(worst.sample.lengths(contract)),
        output=error.output,
        max_abs=error.max_abs,
        used=error.used,
        smallest=dict(least.sample.lengths(contract)) if verdict == "fail" else None,
    )
    return report, worst, least


def _furthest(item: Compared, policy: Policy, precision: str) -> OutputError:
    return max(output_errors([item], policy, precision), key=lambda e: e.used)


def _examine(
    candidate: Candidate,
    worst: Compared,
    policy: Policy,
    report: DebugReport,
    folder: Path,
    block: bool,
    shown: Progress,
) -> None:
    """Fills in what the modules do on the worst sample."""
    variant, contract = candidate.variant, candidate.contract
    inputs = collate([worst.sample], contract, variant.lengths)
    inputs = {
        s.name: repeat(inputs[s.name], variant.batch or 1) if s.batched else inputs[s.name] for s in contract.inputs
    }
    program, side_of = SIDES[variant.format]
    graph, reference = Captured(program(candidate.job), contract), Shelf(folder / "reference")
    graph.fill(reference, inputs)

    def score(outputs: Arrays, precision: str = report.precision) -> float:
        item = replace(worst, candidate=_rows(candidate, outputs, worst.sample))
        return _furthest(item, policy, precision).used

    def right(outputs: Arrays) -> bool:
        return score(outputs, "fp32") <= 1

    if not right(reference):
        shown.begin("capture")
        report.module = frozen_in(candidate.job, graph, inputs, reference, right, folder / "network")
        report.note = (
            f"PyTorch's own graph of the network takes {score(reference, 'fp32'):.2g} of fp32's tolerance already: "
            f"capturing froze a choice in {report.module} that depends on values, on a number of Python or on whether "
            "it is being exported"
        )
        return
    side = side_of(candidate, graph, inputs, reference, folder)
    known = [v for v in side.values if v.name in reference]
    if len(known) < KNOWN * len(side.values) or not known:
        raise UnsupportedError(
            f"{variant.name} calls its values otherwise than this PyTorch does, it is of {variant.exporter}: "
            "run mer export --force"
        )

    exact = Shelf(folder / "exact")
    report.rows, kept_apart = compare_modules(side, inputs, reference, exact, score)
    if report.verdict == "pass" and report.precision == "fp32":
        return
    if report.verdict == "fail" and kept_apart <= min(1.0, report.used / 2):
        report.note = (
            f"with every value between modules kept it takes {kept_apart:.2g} of the tolerance: "
            "what the runtime fuses across modules makes the error"
        )
    shown.begin("suspects")
    found = blame(side, graph, inputs, exact, report.rows, report.precision, score)
    report.module = found.module if found else None
    if block and variant.precision != "fp32" and candidate.job.graph:
        shown.begin("modules to keep in fp32")
        report.kept = [*candidate.job.keep_fp32]
        report.keep_fp32 = block_list(
            candidate.job, candidate.way, candidate.artefact, report.rows, inputs, score, folder
        )


def _rows(candidate: Candidate, outputs: Arrays, sample: Sample) -> Outputs:
    own = sample.lengths(candidate.contract)
    return {
        spec.name: outputs[spec.name][0][
            tuple(slice(own[d]) if isinstance(d, str) else slice(None) for d in spec.dims[1:])
        ]
        for spec in candidate.contract.outputs
    }


def _write(candidate: Candidate, item: Compared, path: Path) -> None:
    """Inputs by name, the reference's outputs by name, and the candidate's as `candidate.NAME`."""
    arrays = collate([item.sample], candidate.contract, candidate.variant.lengths)
    outputs = {n: v[None] for n, v in item.reference.items()} | {
        f"candidate.{n}": v[None] for n, v in item.candidate.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays, **outputs)


def _onnx_side(candidate: Candidate, graph: Captured, inputs: Arrays, reference: Shelf, folder: Path) -> Side:
    return OnnxSide(candidate.artefact, candidate.way, reference.shapes, folder)


def _program_side(candidate: Candidate, graph: Captured, inputs: Arrays, reference: Shelf, folder: Path) -> Side:
    import torch

    return Captured(torch.export.load(candidate.artefact.path), candidate.contract)


def _trace_side(candidate: Candidate, graph: Captured, inputs: Arrays, reference: Shelf, folder: Path) -> Side:
    return TraceSide(candidate.artefact.path, candidate.contract, graph, inputs, reference)


def _lowered(job: ExportJob) -> Any:
    return onnx.captured(job).exported_program


SIDES = {
    "onnx": (_lowered, _onnx_side),
    "exported_program": (exported_program.capture, _program_side),
    "torchscript": (exported_program.capture, _trace_side),
}
"""By format: how the reference is captured, and how the file becomes a side."""
SEALED = {
    "aot_inductor": "a compiled package shows no values between modules: run mer export --format exported_program, "
    "which keeps the graph that the package is compiled of, and debug that; if it agrees, the compiler is to blame",
    "tensorrt": "an engine shows no values between modules: debug the onnx variant of the same precision, which it is "
    "built of; if it agrees, the builder is to blame",
}
"""By format: why its values cannot be read, and what to debug instead."""
