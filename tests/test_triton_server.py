"""A repository that `mer triton` wrote, in a real Triton: its answers are those of `mer infer`.

The server is that of the wheel of pytriton, which lacks the backend of ONNX Runtime: its Python backend runs the same
files under the same configurations (`benchmarks/triton_server.py`). `MER_TRITON` names the interpreter of its
environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mtee_bundles
import numpy as np
import pytest

pytest.importorskip("tritonclient.http")
pytest.importorskip("tritonclient.grpc")
from tritonclient import grpc, http

from benchmarks.triton_server import Triton, running, stand_ins
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.open import stream_samples
from mer_export.data.samples import Sample
from mer_export.exporters import export_variant
from runtimes.predict.prediction import Prediction
from runtimes.predict.predictor import Predictor
from runtimes.triton.plan import plan
from runtimes.triton.repository import write

NAMED = os.environ.get("MER_TRITON")
pytestmark = pytest.mark.skipif(
    not NAMED, reason="MER_TRITON names no interpreter with pytriton: python3 -m benchmarks.triton_server DIR makes one"
)
DATA = Path(__file__).parent / "data"
DIALOGUES = DATA / "small" / "dialogues.jsonl"
TYPES = {"float32": "FP32", "int64": "INT64"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Dialogues, single utterances, and a network that reads its emotions beside, which has a file of a fixed batch."""
    eea = mtee_bundles.make_bundle(tmp_path_factory.mktemp("made") / "eea", "eea")
    for bucket, batch in zip(eea.manifest.contract.buckets, (0, 2), strict=True):
        export_variant(eea, "onnx", bucket, batch=batch)
    return {name: Bundle.open(DATA / "bundles" / name) for name in ("cmerc", "emt")} | {"eea": Bundle.open(eea.root)}


@pytest.fixture(scope="module")
def items(bundles: dict[str, Bundle]) -> dict[str, list[Sample]]:
    dialogues = stream_samples(DIALOGUES, bundle_spec(bundles["cmerc"], DIALOGUES))
    utterances = mtee_bundles.make_samples(mtee_bundles.config_of("eea"), 8)
    draw = np.random.default_rng(0)
    shapes = [{"text": (n, 7), "audio": (n + 2, 5), "vision": (n, 4)} for n in (2, 3, 5)]
    frames = [{m: draw.standard_normal(s, dtype=np.float32) for m, s in own.items()} for own in shapes]
    return {
        "cmerc": list(dialogues),
        "emt": [Sample(f"u{i}", f, (f"u{i}",)) for i, f in enumerate(frames)],
        "eea": utterances,
    }


@pytest.fixture(scope="module")
def server(bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    home = tmp_path_factory.mktemp("triton")
    for name, bundle in bundles.items():
        write(plan(bundle, batch=4), home / name)
        stand_ins(home / name)
    (home / "scratch").mkdir()
    with running(Path(str(NAMED)), [home / name for name in bundles], home / "scratch") as triton:
        yield triton


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Bundle], items: dict[str, list[Sample]]) -> dict[str, list[list[Prediction]]]:
    found = {}
    for name, bundle in bundles.items():
        with Predictor(bundle) as predictor:
            found[name] = [list(predictor.predict([s])) for s in items[name]]
    return found


def given(library: Any, arrays: dict[str, np.ndarray]) -> list[Any]:
    found = []
    for name, array in arrays.items():
        found.append(library.InferInput(name, array.shape, TYPES[str(array.dtype)]))
        found[-1].set_data_from_numpy(np.ascontiguousarray(array))
    return found


def one(sample: Sample) -> dict[str, np.ndarray]:
    return {name: np.asarray(array)[None] for name, array in sample.inputs.items()}


def same(found: Any, predictions: list[Prediction], number: int = 0) -> None:
    labels = [label.decode() for label in found.as_numpy("label")[number]]
    assert labels[: len(predictions)] == [p.label for p in predictions]
    assert not any(labels[len(predictions) :])
    if predictions[0].score is not None:
        np.testing.assert_allclose(found.as_numpy("score")[number], [p.score for p in predictions], atol=1e-5)
    else:
        rows = found.as_numpy("probability")[number].reshape(len(labels), -1)
        for row, p in zip(rows, predictions, strict=False):
            np.testing.assert_allclose(row, list(p.probabilities.values()), atol=1e-5)


@pytest.mark.parametrize("library", [http, grpc])
@pytest.mark.parametrize("name", ["cmerc", "emt", "eea"])
def test_an_unpadded_item_gets_the_answer_of_infer(
    server: Triton,
    items: dict[str, list[Sample]],
    expected: dict[str, list[list[Prediction]]],
    library: Any,
    name: str,
) -> None:
    client = library.InferenceServerClient(server.http if library is http else server.grpc)
    assert client.is_model_ready(name)
    for sample, predictions in zip(items[name], expected[name], strict=True):
        same(client.infer(name, given(library, one(sample))), predictions)


def test_several_items_of_a_request_are_cut_to_their_lengths(
    server: Triton, items: dict[str, list[Sample]], expected: dict[str, list[list[Prediction]]]
) -> None:
    some = items["cmerc"][:6]
    lengths = [len(s.units) for s in some]
    request = {"lengths": np.asarray(lengths)[:, None]}
    for name, axis in (("text", 1), ("audio", 0), ("vision", 0), ("speaker", 0)):
        arrays = [np.asarray(s.inputs[name]) for s in some]
        pads = [[(0, max(lengths) - n if i == axis else 0) for i, n in enumerate(a.shape)] for a in arrays]
        request[name] = np.stack([np.pad(a, p) for a, p in zip(arrays, pads, strict=True)])
    found = grpc.InferenceServerClient(server.grpc).infer("cmerc", given(grpc, request))
    for number, predictions in enumerate(expected["cmerc"][:6]):
        same(found, predictions, number)


def test_many_clients_get_their_own_answers_and_nobody_elses_refusal(
    server: Triton, items: dict[str, list[Sample]], expected: dict[str, list[list[Prediction]]]
) -> None:
    """Every fifth request holds NaN: it is refused, and none that goes to the router with it."""
    client = grpc.InferenceServerClient(server.grpc)
    pairs = list(zip(items["cmerc"], expected["cmerc"], strict=True)) * 8

    def ask(number: int) -> None:
        sample, predictions = pairs[number]
        arrays = one(sample)
        if number % 5 == 0:
            arrays["audio"] = np.full_like(arrays["audio"], np.nan)
            with pytest.raises(grpc.InferenceServerException, match="audio holds nan"):
                client.infer("cmerc", given(grpc, arrays))
        else:
            same(client.infer("cmerc", given(grpc, arrays)), predictions)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(ask, range(len(pairs))))


def test_a_modality_that_is_left_out_is_missing(
    server: Triton, items: dict[str, list[Sample]], bundles: dict[str, Bundle]
) -> None:
    client = grpc.InferenceServerClient(server.grpc)
    with Predictor(bundles["cmerc"]) as predictor:
        for sample in items["cmerc"][:4]:
            arrays = one(sample)
            del arrays["vision"]
            inputs = {n: a[0] for n, a in arrays.items()}
            same(client.infer("cmerc", given(grpc, arrays)), list(predictor.predict([inputs])))


def test_too_long_an_item_is_refused_in_one_sentence(server: Triton) -> None:
    arrays = {"text": (1, 2, 9, 8), "audio": (1, 9, 5)}
    request = {n: np.zeros(s, np.float32) for n, s in arrays.items()} | {"speaker": np.zeros((1, 9), np.int64)}
    with pytest.raises(http.InferenceServerException) as refusal:
        http.InferenceServerClient(server.http).infer("cmerc", given(http, request))
    assert refusal.value.message() == (
        "item 0: lengths {'utterances': 9} are more than the longest of this model, {'utterances': 8}"
    )


def test_models_have_run_in_their_largest_batch_before_they_are_asked(server: Triton) -> None:
    client = grpc.InferenceServerClient(server.grpc)
    stats = client.get_inference_statistics("emt-text6-audio5-vision4", as_json=True)["model_stats"][0]
    assert {int(s["batch_size"]) for s in stats["batch_stats"]} >= {1, 4}
