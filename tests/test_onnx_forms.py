"""ONNX files have a form for CUDA, without lengths in recurrent operators, and it answers as the one for the CPU."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from small_bundle import part_of
from small_networks import job_of

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.errors import UnsupportedError
from mer_export.exporters import export_variant
from mer_export.exporters.onnx import to_onnx
from mer_export.reference import run_model
from runtimes.backends.onnx_runtime import OnnxRuntimeSession
from runtimes.backends.session import Artefact, SessionOptions
from runtimes.backends.way import find_ways
from runtimes.predict.predictor import Predictor

RECURRENT = ("GRU", "LSTM", "RNN")
LENGTHS = 4
"""Place of the lengths among the inputs of a recurrent operator."""
FOUR = Bucket(utterances=4)
CHANGES: dict[str, dict[str, Any]] = {
    "cmerc gru": {"hypergraph_layers": 1, "frequency_layers": 1},
    "cmerc lstm": {"hypergraph_layers": 1, "frequency_layers": 1},
    "tfr_net gru": {"modalities": ["audio"], "bert": None, "buckets": [{"audio_len": 12}]},
    "mtee eea": {},
    "mtee rnn_eflf": {},
}
"""Every recurrent layer there is, and changes: the crossmodal layers of three modalities would take a minute."""
CASES = [(n, b) for b in (0, 3) for n in CHANGES]
if "MER_EVERY_NETWORK" not in os.environ:
    CASES = [c for c in CASES if c[1] == 0 and c[0] != "cmerc lstm"] + [("mtee rnn_eflf", 3)]
"""The LSTM of both directions is that of `mtee eea` too, and a fixed batch alike for all."""


@pytest.mark.parametrize(("network", "batch"), CASES)
def test_both_forms_give_the_answers_of_the_network(network: str, batch: int, tmp_path: Path) -> None:
    """For items of full, middle and least length."""
    job = job_of(network, batch, **CHANGES[network])
    for spec in job.contract.inputs:
        if spec.counts:
            longest = job.lengths[spec.counts]
            job.example[spec.name][:] = (longest, 1 + longest // 2, job.contract.shortest.get(spec.counts, 1))
    job = replace(job, reference=run_model(job.model, job.contract, job.example))
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.onnx"
        graph = to_onnx(replace(job, device=device))
        onnx.save_model(graph, path)
        nodes = [n for n in graph.graph.node if n.op_type in RECURRENT]
        with_lengths = [n for n in nodes if len(n.input) > LENGTHS and n.input[LENGTHS]]
        assert nodes
        assert bool(with_lengths) == (device == "cpu")
        with OnnxRuntimeSession(Artefact(path, job.contract, job.lengths, batch), SessionOptions()) as session:
            for name, values in session.run(job.example).items():
                np.testing.assert_allclose(values, job.reference[name], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def both(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = part_of(exported, tmp_path_factory.mktemp("forms") / "bundle", ("onnx", 4))
    export_variant(bundle, "onnx", FOUR, device="cuda")
    return bundle


def chosen(bundle: Bundle, device: Any) -> str:
    predictor = Predictor(bundle, options=SessionOptions(device=device))
    variant = predictor._variants[FOUR]
    assert variant is not None
    return variant.name


def test_both_forms_live_in_one_bundle_and_each_device_gets_its_own(both: Bundle) -> None:
    cpu, cuda = "onnx-fp32-utterances4-bdynamic", "onnx-fp32-utterances4-bdynamic-cuda"
    assert [v.name for v in both.manifest.variants] == [cpu, cuda]
    assert both.find(cuda).options["device"] == "cuda"
    assert both.verify() == len(both.manifest.files)
    assert (chosen(both, "cpu"), chosen(both, "cuda")) == (cpu, cuda)
    ways = {(w.options.device, w.variant) for w in find_ways(both) if w.backend == "onnxruntime"}
    assert ways == {("cpu", cpu), ("cuda", cuda)}


def test_a_form_that_is_up_to_date_is_left_alone(both: Bundle) -> None:
    for device in ("cpu", "cuda"):
        made = both.manifest.model_copy(deep=True)
        export_variant(both, "onnx", FOUR, device=device)
        assert both.manifest == made


@pytest.mark.parametrize("there", ["cpu", "cuda"])
def test_the_only_form_runs_on_every_device(there: str, both: Bundle, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(both.root, tmp_path / "bundle"))
    with bundle.commit() as change:
        change.manifest.variants = [v for v in change.manifest.variants if v.device == there]
    (only,) = bundle.manifest.variants
    assert {chosen(bundle, device) for device in ("cpu", "cuda")} == {only.name}


def test_a_format_with_one_form_for_every_device_is_not_exported_for_one(both: Bundle) -> None:
    with pytest.raises(UnsupportedError, match=r"torchscript has one form for every device.*'onnx', 'aot_inductor'"):
        export_variant(both, "torchscript", FOUR, device="cuda")


def test_a_refused_capture_says_why_and_what_to_do(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those of ONNX Runtime 1.31 for a file with the lengths in it."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("This session cannot use the graph capture feature as requested by the user ...")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    path, contract = both.variant_files(both.manifest.variants[0]), both.manifest.contract
    with pytest.raises(UnsupportedError, match="on the CPU: run mer export --format onnx --device cuda"):
        OnnxRuntimeSession(Artefact(path, contract, FOUR), SessionOptions(device="cuda", cuda_graph=True))
