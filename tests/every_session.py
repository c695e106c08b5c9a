"""The sessions of one runtime on a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import pytest

from mer_export.bundle import Bundle
from runtimes.backends.session import Session, SessionOptions
from runtimes.backends.table import backend_problem, known_backends, open_session

RUNTIMES = ("torch", "torchscript", "exported_program", "onnxruntime", "openvino")
ONE_THREAD = SessionOptions(threads=1)
Sessions = list[tuple[Session, Mapping[str, int]]]


@contextmanager
def every_session(bundle: Bundle, runtime: str) -> Iterator[Sessions]:
    """Each with the lengths to pad to, the shortest first; skips what is not here or not exported."""
    if problem := backend_problem(runtime):
        pytest.skip(problem)
    formats = known_backends()[runtime].formats
    variants = sorted((v for v in bundle.manifest.variants if v.format in formats), key=lambda v: v.lengths)
    if formats and not variants:
        pytest.skip("this network is not exported to that format here")
    with ExitStack() as stack:
        if formats:
            yield [(stack.enter_context(open_session(bundle, v, runtime, ONE_THREAD)), v.lengths) for v in variants]
        else:
            eager = stack.enter_context(open_session(bundle, None, runtime, ONE_THREAD))
            yield [(eager, lengths) for lengths in bundle.manifest.contract.buckets]
