"""Why a network becomes no AOTInductor package that runs: compiled again with one setting of the compiler changed.

A row says how far the process got that compiles, loads and runs the package (`stage`), what ended it, and its last
words: of a crash the native stack. A setting with which it runs names the cause.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.prepare import LINES, exports_of
from benchmarks.gpu.rows import Results, Row
from benchmarks.suite import NETWORKS
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Variant
from mer_export.exporters.aot_inductor import FORMAT, attempt
from mer_export.exporters.export import job_of

ITEMS = 2


@dataclass(frozen=True)
class Trial:
    """What is changed: settings of the compiler, variables of the environment, the batch (0: any)."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    batch: int = 0


TRIALS = {
    "as it is exported": Trial(),
    "every kernel is waited for": Trial(environment={"CUDA_LAUNCH_BLOCKING": "1"}),
    "a fixed batch": Trial(batch=ITEMS),
    "no checks of indices in kernels": Trial({"assert_indirect_indexing": False}),
    "kernels are not tuned while it compiles": Trial({"triton.autotune_at_compile_time": False}),
    "the wrapper is not optimised": Trial({"aot_inductor.compile_wrapper_opt_level": "O0"}),
    "no memory is used again": Trial({"allow_buffer_reuse": False}),
    "no patterns are replaced": Trial({"pattern_matcher": False}),
    "weights beside the library": Trial({"aot_inductor.package_constants_in_so": False}),
}


def causes(results: Results, folder: Path, network: str, everywhere: bool = False) -> None:
    """The trials of a network in the bucket whose package failed when it was prepared; `everywhere` also of those
    whose package runs."""
    rows = [r for r in exports_of(folder, network) if (r["status"], r["way"]) == ("failed", f"{FORMAT.name} fp32")]
    buckets = {b.name: b for b in NETWORKS[network].buckets}
    if not rows and not everywhere:
        return
    name = rows[0]["bucket"] if rows else next(iter(buckets))
    bundle = Bundle.open(folder / network, trust=True)
    for way, trial in TRIALS.items():
        about = {"part": "packages", "network": network, "bucket": name, "way": way}
        if results.in_time and not results.has(**about):
            with results.piece(**about):
                results.add([_tried(bundle, buckets[name], trial, results.device)], **about)


def _tried(bundle: Bundle, bucket: Bucket, trial: Trial, device: str) -> Row:
    form = {"format": FORMAT.name, "precision": "fp32", "lengths": bucket, "batch": trial.batch}
    job = job_of(bundle, Variant(**form, model="", exporter="", options={"device": device}))
    with tempfile.TemporaryDirectory() as folder:
        done = attempt(job, Path(folder) / "model.pt2", Path(folder), trial.settings, trial.environment)
    if not done.status:
        return {"stage": "ran to its end", "ended_by": ""}
    return {"stage": done.stage, "ended_by": done.reason, "said": done.said[-LINES:]}
