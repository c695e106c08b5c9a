"""How the weights of a large file are opened where few items are to come."""

from __future__ import annotations

import numpy as np
import pytest
from small_bundle import make_samples

from mer_export.bundle import Bundle
from runtimes.backends import onnx_runtime
from runtimes.backends.session import SessionOptions
from runtimes.predict.predictor import Predictor

ONE_THREAD = SessionOptions(threads=1)


def test_weights_of_a_large_file_are_read_in_place_where_few_samples_come(
    exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(count: int, once: bool, options: SessionOptions = ONE_THREAD) -> tuple[set[str], np.ndarray]:
        with Predictor(exported, "onnxruntime", options, batch=1, once=once) as predictor:
            scores = predictor.scores(make_samples(count))
            return {s.info["weights"] for s in predictor._sessions.values()}, np.concatenate(scores)

    assert opened(4, once=True)[0] == {"rearranged"}
    monkeypatch.setattr(onnx_runtime, "LARGE", 0)
    monkeypatch.setattr(onnx_runtime, "REARRANGED", 40)
    (few, answers), (usual, same) = opened(4, once=True), opened(4, once=False)
    assert (few, usual) == ({"in place"}, {"rearranged"})
    assert opened(24, once=True)[0] == {"rearranged"}
    assert opened(24, once=True, options=SessionOptions(threads=2))[0] == {"in place", "rearranged"}
    np.testing.assert_allclose(answers, same, rtol=0, atol=1e-6)
