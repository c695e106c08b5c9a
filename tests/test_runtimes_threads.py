"""One predictor and many threads, on every backend; and none in a forked child."""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Once
from small_bundle import make_samples
from small_facialmmt import export_staged, utterances

from mer_export.bundle import Bundle
from mer_export.data.samples import Sample
from runtimes.backends import staged
from runtimes.backends.openvino.session import OpenVinoSession
from runtimes.backends.session import Session, SessionOptions
from runtimes.backends.table import backend_problem
from runtimes.predict.predictor import Predictor

ON_CPU = ["torch", "torchscript", "exported_program", "onnxruntime", "openvino"]
ONE_THREAD = SessionOptions(threads=1)


def answered(predictor: Predictor, sample: Sample) -> bytes:
    (rows,) = predictor.scores([sample])
    return rows.tobytes()


def differing(predictor: Predictor, samples: list[Sample], threads: int, calls: int) -> int:
    """How many of `threads` × `calls` answers are not, bit by bit, those that one thread gets."""
    order = [[(7 * t + i) % len(samples) for i in range(calls)] for t in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda own: [answered(predictor, samples[i]) for i in own], order))
    expected = [answered(predictor, s) for s in samples]
    pairs = zip(itertools.chain(*order), itertools.chain(*found), strict=True)
    return sum(got != expected[i] for i, got in pairs)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("backend", ON_CPU)
def test_threads_that_share_a_predictor_get_their_own_answers(exported: Bundle, backend: str, workers: int) -> None:
    if backend_problem(backend):
        pytest.skip(str(backend_problem(backend)))
    with Predictor(exported, backend, ONE_THREAD, workers=workers) as shared:
        assert differing(shared, make_samples(16), threads=6, calls=30) == 0


def test_openvino_compiles_one_model_for_all_workers(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    opened = []
    original = OpenVinoSession._compile
    monkeypatch.setattr(OpenVinoSession, "_compile", lambda own, size: opened.append(size) or original(own, size))
    with Predictor(exported, "openvino", ONE_THREAD, batch=2, workers=3) as shared:
        bucket = shared.buckets[0]
        with shared.lend(bucket) as one, shared.lend(bucket) as other:
            assert other is one
        assert one.info["threads"] == 1
    assert opened == [2]


def test_threads_that_share_a_variant_in_stages_get_their_own_answers(
    once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export_staged(once)
    contract = bundle.manifest.contract
    samples = [s for seed in range(4) for s in utterances(contract, 2, seed=seed)]
    # Less than the threads bring, so that what one call needs is thrown out by others.
    monkeypatch.setattr(staged, "KEPT_BYTES", 1000)
    with Predictor(bundle, "onnxruntime", ONE_THREAD, batch=1) as shared:
        assert differing(shared, samples, threads=4, calls=10) == 0


def test_a_bucket_is_loaded_once_however_many_threads_ask_for_it(
    exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    original = Predictor._open

    def watched(self: Predictor, bucket: object, batch: int, **how: Any) -> Session:
        opened.append(bucket)
        return original(self, bucket, batch, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "_open", watched)
    with Predictor(exported, "onnxruntime", ONE_THREAD) as shared, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda s: shared.scores([s]), make_samples(32)))
    assert len(opened) == len(set(opened)) == 2


FORKED = """
import os, sys
import numpy as np
import runtimes
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
inputs = {"text": np.ones((2, 3, 16), np.float32), "audio": np.ones((3, 8), np.float32), "speaker": np.zeros(3, int)}
sample = Sample("d", inputs, ("a", "b", "c"))
predictor = runtimes.load(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), threads=1)
list(predictor.predict([sample]))
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    list(predictor.predict([sample]))
except UsageError as error:
    print(error)
    sys.stdout.flush()
    os._exit(0)
os._exit(1)
"""


@pytest.mark.parametrize(("backend", "workers"), [("torchscript", 1), ("onnxruntime", 1), ("openvino", 2)])
def test_a_forked_child_is_refused_in_one_sentence(exported: Bundle, backend: str, workers: int) -> None:
    if backend_problem(backend):
        pytest.skip(str(backend_problem(backend)))
    command = [sys.executable, "-c", FORKED, str(exported.root), backend, str(workers)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "forked from it: start workers with multiprocessing.get_context('spawn')" in ran.stdout
    assert ran.stdout.count("\n") == 1
