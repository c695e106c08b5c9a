"""Arrays and tensors on their way to a device and back: page-locked memory, and none at all where they are there.

The CUDA driver is a stand-in on host memory, ONNX Runtime and PyTorch are real and compute on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_bundle import make_samples
from tensorrt_double import Driver

from mer_export import cuda
from mer_export.bundle import Bundle, Variant
from mer_export.data.collate import collate
from mer_export.errors import InputError, UnsupportedError, UsageError
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import open_session

ONE = SessionOptions(threads=1)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(cuda, "load_driver", lambda: made)
    cuda.find_gpu.cache_clear()
    yield made
    cuda.find_gpu.cache_clear()


def graph(bundle: Bundle) -> Variant:
    return next(v for v in bundle.manifest.variants if v.format == "onnx" and v.lengths["utterances"] == 4)


def arrays(bundle: Bundle, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    samples = [s for s in make_samples(24, seed) if len(s.units) <= 4][:size]
    return collate(samples, bundle.manifest.contract, graph(bundle).lengths)


def tensors(bundle: Bundle, size: int) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(a) for n, a in arrays(bundle, size).items()}


def test_onnx_runtime_answers_the_same_through_bound_buffers_and_page_locked_memory(
    exported: Bundle, driver: Driver
) -> None:
    with open_session(exported, graph(exported), "onnxruntime", ONE) as session:
        kept = []
        for size, seed in ((2, 0), (3, 1), (2, 2)):
            given = arrays(exported, size, seed)
            wanted = session.run(given)["log_prob"]
            kept.append((session._run_bound(given)["log_prob"], wanted))  # type: ignore[attr-defined]
        # An answer is the caller's own: later runs through the same buffers leave it as it is.
        for found, wanted in kept:
            np.testing.assert_array_equal(found, wanted)
        assert driver.log.count("cuMemHostAlloc") == 2 * (len(given) + 1), "one set per batch size"
    assert not driver.memory


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_tensors_stay_where_they_are_and_give_the_answers_of_arrays(exported: Bundle, backend: str) -> None:
    variant = graph(exported) if backend == "onnxruntime" else None
    with open_session(exported, variant, backend, ONE) as session:
        given = tensors(exported, 3)
        wanted = session.run({n: t.numpy() for n, t in given.items()})["log_prob"]
        # As it comes out of other work: not in one piece.
        apart = {n: torch.stack([t, t], dim=-1)[..., 0] for n, t in given.items()}
        for one in (given, apart):
            found = session.run_tensors(one)["log_prob"]
            assert found.device == given["text"].device
            np.testing.assert_array_equal(found.numpy(), wanted)


def test_tensors_that_do_not_fit_are_refused(exported: Bundle) -> None:
    with open_session(exported, graph(exported), "onnxruntime", ONE) as session:
        given = tensors(exported, 2)
        with pytest.raises(UsageError, match="text is on meta, the session on cpu: move it there"):
            session.run_tensors(given | {"text": given["text"].to("meta")})
        with pytest.raises(InputError, match="text is float64, the contract asks for float32"):
            session.run_tensors(given | {"text": given["text"].double()})
        with pytest.raises(InputError, match="inputs are"):
            session.run_tensors({"text": given["text"]})
    with (
        open_session(exported, graph(exported), "openvino", ONE) as session,
        pytest.raises(UnsupportedError, match="runtime openvino takes arrays alone"),
    ):
        session.run_tensors(given)
