"""Profiles of a machine: made up of times, and a measured one of a small bundle, which files of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Once
from small_bundle import make_samples, part_of

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from runtimes.backends.session import SessionOptions
from runtimes.backends.way import Way
from runtimes.predict.machine_profile import Entry, Profile
from runtimes.speed import settings, tune

PASSES = tuple(step._replace(rounds=1) for step in tune.PASSES[:3])
RATES = {"fp32": 100.0, "bf16": 200.0, "int8": 300.0}
"""A processor that multiplies faster in every reduced precision, whatever this one does at the moment."""


def tuned(once: Once, exported: Bundle) -> Bundle:
    """Both buckets as ONNX and the long one as TorchScript, and a profile of this machine; read only."""

    def made(root: Path) -> Bundle:
        bundle = part_of(exported, root, ("onnx", 4), ("onnx", 8), ("torchscript", 8))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(settings, "parallel", lambda: [(1, 1), (1, 2)])
            patch.setattr(tune, "PASSES", PASSES)
            patch.setattr(tune, "products", lambda: RATES)
            tune.run_tune(bundle, make_samples(16), batches=(1, 3)).save(bundle)
        return bundle

    return once("tuned", made)


def way(precision: str = "fp32", workers: int = 1, **options: int) -> Way:
    """In any bucket."""
    own = SessionOptions(**{"threads": 1} | options)
    return Way(backend="onnxruntime", format="onnx", precision=precision, options=own, workers=workers)


def in_bucket(way: Way, length: int) -> Way:
    return way.model_copy(update={"variant": f"v{length}", "bucket": Bucket(n=length)})


def profile_of(times: list[tuple[Way, float, float]]) -> Profile:
    """Ways with their milliseconds per call in a short and a long bucket, which get a third of the data and two."""
    entries = [
        Entry(way=in_bucket(w, n), sha256="", ms=ms, p90=1.2 * ms, share=share, rounds=3)
        for w, *both in times
        for n, ms, share in zip((4, 8), both, (1 / 3, 2 / 3), strict=True)
    ]
    return Profile(machine={"cpu": "a", "cores": 4}, weights_sha256="", source="", entries=entries, load_average=0)
