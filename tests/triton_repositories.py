"""Triton repositories as tests read and ask them, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mtee_bundles
import numpy as np
import onnxruntime
from small_networks import NETWORKS

from mer_export import registry
from mer_export.bundle import Bundle, Manifest
from mer_export.data.samples import Sample
from runtimes.predict.prediction import Prediction
from runtimes.predict.predictor import Predictor
from runtimes.triton.config import protobuf
from runtimes.triton.router import Router


def read(file: Path) -> Any:
    """A configuration, as Triton reads it."""
    from google.protobuf import text_format

    return text_format.Parse(file.read_text(encoding="utf-8"), protobuf().ModelConfig())


def ports(found: Any) -> dict[str, tuple[str, list[int]]]:
    return {p.name: (protobuf().DataType.Name(p.data_type), list(p.dims)) for p in found}


def tensors(sample: Sample) -> dict[str, np.ndarray]:
    """One unpadded item, as a client sends it."""
    return {name: np.asarray(array)[None] for name, array in sample.inputs.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def answered(router: Router, repository: Path, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a request gets, each model run by ONNX Runtime in this process."""
    items = router.items(request)
    for number, bucket in enumerate(router.buckets):
        own = [i for i in items if i.bucket == number]
        if own:
            session = onnxruntime.InferenceSession(repository / bucket["model"] / "1" / "model.onnx")
            names = [s["name"] for s in router.outputs]
            router.cut(dict(zip(names, session.run(names, router.pad(own, number)), strict=True)), own)
    return router.answer(request, items)


def router_of(repository: Path, name: str) -> Router:
    return Router(json.loads((repository / name / "1" / "contract.json").read_text()))


def same(found: dict[str, np.ndarray], number: int, expected: list[Prediction]) -> None:
    """The answer to item `number` of a request is what `mer infer` says of its units."""
    labels = [label.decode() for label in found["label"][number]]
    assert labels[: len(expected)] == [p.label or "" for p in expected]
    assert not any(labels[len(expected) :])
    for row, p in zip(found["probability"][number], expected, strict=False):
        np.testing.assert_allclose(row, list(p.probabilities.values()) or np.nan, atol=1e-5)


def described(name: str, root: Path) -> Predictor:
    """A predictor of a network's contract and task, which reads scores but has no weights."""
    system_name, values = NETWORKS[name]
    system = registry.get(system_name)
    config = system.parse(values)
    vectors = {label: np.arange(mtee_bundles.WORDS) + 1.0 for label in getattr(config, "labels", ())}
    contract = system.complete(system.contract(config), config, {"vectors": vectors})
    manifest = Manifest(
        system=system_name,
        variant=system.variant_of(config),
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=contract,
    )
    return Predictor(Bundle.create(root, manifest), "torch")
