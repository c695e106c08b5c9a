"""One ONNX file holds all that somebody without `mer` needs to ask it, and gives the answers of `mer infer`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Mer
from mtee_bundles import WORDS
from small_networks import NETWORKS

from mer_export import registry
from mer_export.bundle import Bundle, Manifest, Variant
from mer_export.contract import Contract
from mer_export.data.bundle_data import bundle_samples
from mer_export.data.collate import collate
from mer_export.data.example_inputs import random_indices
from mer_export.data.samples import Sample
from mer_export.errors import InputError, UnsupportedError, UsageError
from mer_export.exporters import onnx_file

DATA = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"
PAGE = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text(encoding="utf-8")
KEYS = set(re.findall(r"^\| `(\w+)` \|", PAGE.split("| key | what |")[1].split("\n\n")[0], re.MULTILINE))
"""What the page says of the metadata."""
PROGRAM = PAGE.split("```python\n")[1].split("```")[0]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(BUNDLE, tmp_path / "bundle")


def test_the_program_of_the_page_gives_the_answers_of_infer_without_mer(mer: Mer, bundle: Path, tmp_path: Path) -> None:
    code, _, err = mer("export", bundle, "--seq-len", "utterances=8", "--onnx-file", tmp_path / "model.onnx")
    assert code == 0, err
    assert mer("infer", bundle, DIALOGUES, "--split", "test", "-o", tmp_path / "labels.jsonl")[0] == 0
    said = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    samples = bundle_samples(Bundle.open(bundle), DIALOGUES, "auto", "test")
    for sample in samples:
        np.savez(tmp_path / "dialogue.npz", **sample.inputs)
        labels, best, probabilities = alone(PROGRAM, tmp_path)
        expected = [row for row in said if row["sample"] == sample.id]
        assert [labels[b] for b in best] == [row["label"] for row in expected]
        numbers = [list(row["probabilities"].values()) for row in expected]
        np.testing.assert_allclose(probabilities, numbers, rtol=0, atol=1e-5)
    assert len(samples) > 2


def alone(program: str, folder: Path) -> Any:
    """What a program prints in a process that finds numpy and ONNX Runtime and nothing else of this environment."""
    packages = folder / "packages"
    if not packages.exists():
        packages.mkdir()
        for name in ("numpy", "onnxruntime"):
            found = importlib.util.find_spec(name)
            assert found is not None
            assert found.origin is not None
            origin = Path(found.origin).parent
            for own in (origin, *origin.parent.glob(f"{name}.libs")):
                (packages / own.name).symlink_to(own)
    refused = (
        "import importlib.util; assert not any(map(importlib.util.find_spec, ['mer_export', 'runtimes', 'cli']))\n"
    )
    environment = {"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-S", "-c", refused + program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_metadata_alone_fill_the_inputs_as_mer_does(name: str, tmp_path: Path) -> None:
    """Of every system, with all modalities and without one each."""
    system_name, values = NETWORKS[name]
    system = registry.get(system_name)
    config = system.parse(values)
    vectors = {label: np.linspace(0, 1, WORDS) + i for i, label in enumerate(getattr(config, "labels", ()))}
    contract = system.complete(system.contract(config), config, {"vectors": vectors})
    bucket = contract.buckets[-1]
    variant = Variant(format="onnx", precision="fp32", lengths=bucket, batch=0, model="m.onnx", exporter="")
    manifest = Manifest(
        system=system_name, variant="", config={}, task=system.task(config), contract=contract, files={"m.onnx": ENTRY}
    )
    about = json.loads(json.dumps(onnx_file.metadata(Bundle(tmp_path, manifest), variant)))
    for missing in (None, *(contract.modalities if len(contract.modalities) > 1 else ())):
        sample = made_up(contract, bucket, missing)
        expected = collate([sample], contract, bucket)
        found = {own["name"]: filled(own, sample.inputs) for own in about["inputs"]}
        assert list(found) == list(expected)
        for key, array in expected.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array, err_msg=f"{key} without {missing}")


ENTRY = {"size": 1, "sha256": "0" * 64}


def made_up(contract: Contract, bucket: Mapping[str, int], missing: str | None) -> Sample:
    """An item with steps of its own number in every dim."""
    random = np.random.default_rng(0)
    least = contract.shortest
    lengths = {d: max(least.get(d, 1), n - 1) for d, n in bucket.items()} | contract.shared_lengths
    inputs = {}
    for spec in contract.features:
        if missing is None or spec.modality != missing:
            shape = tuple(lengths[d] if isinstance(d, str) else d for d in spec.dims[1:])
            drawn = random.standard_normal(shape, dtype=np.float32)
            inputs[spec.name] = drawn if spec.dtype == "float32" else random_indices(spec, shape, random)
    return Sample("0", inputs, ("0",))


def filled(own: Mapping[str, Any], item: Mapping[str, np.ndarray]) -> np.ndarray:
    """One input of an item as docs/deploying.md says it is filled, a batch of one."""
    array = np.full([1 if n is None else n for n in own["shape"]], own["padding"], own["dtype"])
    fill = own.get("fill", {})
    if own["kind"] == "given":
        array[:] = own["values"]
    elif own["kind"] == "count":
        real = max((item[n].shape[axis] for n, axis in own["of"].items() if n in item), default=0)
        array[0] = max(real, fill.get(own["counts"], {}).get("length", 0)) if real else 0
    elif own["name"] in item:
        values = item[own["name"]]
        places = []
        for dim, size in zip(own["dims"][1:], values.shape, strict=True):
            about = fill.get(dim, {"side": "right"})
            start = max(0, about["length"] - size) if about["side"] == "left" else 0
            places.append(slice(start, start + size))
        array[0][tuple(places)] = values
    return array


def test_the_file_says_what_it_is_made_of(mer: Mer, bundle: Path, tmp_path: Path) -> None:
    made = tmp_path / "model.onnx"
    words = ["export", bundle, "--precision", "int8", "--seq-len", "utterances=4", "--onnx-file", made]
    assert mer(*words)[0] == 0
    model = onnx.load_model(made, load_external_data=False)
    assert not any(t.external_data for t in model.graph.initializer)
    about = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert set(about) == KEYS
    manifest = Bundle.open(bundle).manifest
    source = about["source"]
    assert source["variant"] == "onnx-int8-utterances4-bdynamic"
    assert source["sha256"] == manifest.files["variants/onnx-int8/utterances4-bdynamic.onnx"].sha256
    assert source["weights_sha256"] == manifest.weights.sha256
    assert about["labels"] == list(manifest.task.labels)
    assert about["features"]["text"]["mean"] == manifest.features["text"].mean


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "these are fp32 utterances4, fp32 utterances8: name one --precision and one --seq-len"),
        (["--seq-len", "utterances=8", "--precision", "fp32", "--precision", "int8"], 2, "int8 utterances8"),
        (["--seq-len", "utterances=8", "--format", "torchscript"], 7, "one ONNX graph, not torchscript"),
    ],
)
def test_what_is_no_single_file_is_refused(
    mer: Mer, bundle: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    found, _, err = mer("export", bundle, *words, "--onnx-file", tmp_path / "model.onnx")
    assert (found, said in err) == (code, True), err
    assert not (tmp_path / "model.onnx").exists()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    job = [("onnx", "fp32", Bundle.open(BUNDLE).manifest.contract.buckets[0], 0)]
    (tmp_path / "there.onnx").touch()
    for name, said in (("model.bin", "ending"), ("none/model.onnx", "exists"), ("there.onnx", "pass --force")):
        with pytest.raises(UsageError, match=said):
            onnx_file.check(tmp_path / name, job, stages=False, force=False)
    with pytest.raises(UnsupportedError, match="not stages"):
        onnx_file.check(tmp_path / "model.onnx", job, stages=True, force=False)


def test_samples_that_are_not_the_models_are_named(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    with opened.commit() as change:
        np.savez(change.file("samples/utterances8.npz"), text=np.zeros(1))
    with pytest.raises(InputError, match=r"inputs are \['text'\], the contract asks for"):
        onnx_file.write(opened, opened.find("onnx-fp32-utterances8-bdynamic"), tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_more_than_a_file_can_hold_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(bundle)
    monkeypatch.setattr(onnx_file, "MOST", 10_000)
    with pytest.raises(UnsupportedError, match="export a smaller --precision"):
        onnx_file.write(opened, opened.find("onnx-fp32-utterances8-bdynamic"), tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))
