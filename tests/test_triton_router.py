"""The router of a Triton repository: it pads and answers as the predictor does."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from small_networks import NETWORKS
from triton_repositories import CMERC, answered, described, ports, repository_of, router_of, same, samples_of, tensors

from mer_export.bucket import bucket_for
from mer_export.bundle import Bundle, Variant
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.given import OPTIONAL
from mer_export.data.samples import Sample
from runtimes.predict.predictor import Predictor
from runtimes.triton import router as router_module
from runtimes.triton.plan import answers_of, contract_of, plan
from runtimes.triton.router import Refusal, Router

pytest.importorskip("tritonclient.grpc")


@pytest.fixture(scope="module")
def cmerc() -> Bundle:
    return Bundle.open(CMERC)


@pytest.fixture(scope="module")
def written(cmerc: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository_of(cmerc, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def dialogues(cmerc: Bundle) -> list[Sample]:
    return samples_of(cmerc)


def test_the_router_needs_numpy_alone(written: Path) -> None:
    source = (written / "cmerc" / "1" / "model.py").read_text()
    assert source == Path(router_module.__file__).read_text()
    found = {
        n for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for n in (a.name for a in node.names)
    }
    found |= {str(node.module) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert {n.split(".")[0] for n in found} - sys.stdlib_module_names == {"numpy", "triton_python_backend_utils"}


def test_answers_are_those_of_infer(written: Path, cmerc: Bundle, dialogues: list[Sample]) -> None:
    router = router_of(written, "cmerc")
    with Predictor(cmerc) as predictor:
        lengths = set()
        for sample in dialogues:
            same(answered(router, written, tensors(sample)), 0, list(predictor.predict([sample])))
            lengths.add(len(sample.units))
    assert {n <= 4 for n in lengths} == {True, False}


def test_items_of_several_lengths_are_cut_to_theirs(written: Path, cmerc: Bundle, dialogues: list[Sample]) -> None:
    """What stands behind the lengths is NaN, which the model would refuse."""
    some = dialogues[:6]
    lengths = [len(s.units) for s in some]
    request: dict[str, np.ndarray] = {"lengths": np.asarray(lengths)[:, None]}
    for name, axis in (("text", 1), ("audio", 0), ("vision", 0), ("speaker", 0)):
        arrays = [np.asarray(s.inputs[name]) for s in some]
        pads = [[(0, max(lengths) - n if i == axis else 0) for i, n in enumerate(a.shape)] for a in arrays]
        behind = np.nan if name != "speaker" else 99
        request[name] = np.stack([np.pad(a, p, constant_values=behind) for a, p in zip(arrays, pads, strict=True)])
    found = answered(router_of(written, "cmerc"), written, request)
    assert found["log_prob"].shape == (6, max(lengths), 3)
    with Predictor(cmerc) as predictor:
        for number, sample in enumerate(some):
            same(found, number, list(predictor.predict([sample])))
            assert not found["log_prob"][number, lengths[number] :].any()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"audio": np.full((1, 3, 5), np.nan, np.float32)}, "item 0: audio holds nan at"),
        ({"speaker": np.full((1, 3), 7)}, "item 0: speaker goes from 7 to 7, the model knows 0..1"),
        ({"speaker": np.zeros((1, 2), int)}, "item 0: speaker has 2 utterances, other inputs have 3"),
        ({"lengths": np.asarray([[4]])}, "item 0: lengths is 4, text has 3"),
        ({"lengths": np.asarray([[0]])}, "item 0: text has no utterances: remove the empty item"),
        (
            {
                n: np.zeros((1, *s), t)
                for n, s, t in (
                    ("text", (2, 9, 8), "f"),
                    ("audio", (9, 5), "f"),
                    ("vision", (9, 4), "f"),
                    ("speaker", (9,), int),
                )
            },
            "are more than the longest of this model, {'utterances': 8}",
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused_with_its_place(
    written: Path, change: dict[str, np.ndarray], problem: str
) -> None:
    shapes = {"text": (1, 2, 3, 8), "audio": (1, 3, 5), "vision": (1, 3, 4)}
    request = {n: np.zeros(s, np.float32) for n, s in shapes.items()} | {"speaker": np.zeros((1, 3), int)} | change
    with pytest.raises(Refusal) as refusal:
        router_of(written, "cmerc").items(request)
    assert problem in str(refusal.value)


def drawn(contract: Contract, seed: int) -> Sample:
    """An item of random lengths, in every third of which a modality is missing."""
    draw = np.random.default_rng(seed)
    longest = contract.buckets[-1]
    lengths = {d: int(draw.integers(contract.shortest.get(d, 1), n + 1)) for d, n in longest.items()}
    absent = draw.choice(contract.modalities) if seed % 3 == 0 and len(contract.modalities) > 1 else None
    inputs = {}
    for spec in contract.features:
        if spec.name not in OPTIONAL and (spec.modality is None or spec.modality != absent):
            shape = [lengths[d] if isinstance(d, str) else d for d in spec.dims[1:]]
            whole = draw.integers(0, spec.below or 3, shape)
            inputs[spec.name] = whole if spec.dtype == "int64" else draw.standard_normal(shape, dtype=np.float32)
    units = lengths[contract.unit_dim] if contract.unit_dim else 1
    return Sample(str(seed), inputs, tuple(map(str, range(units))))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_router_pads_and_reads_every_network_as_the_predictor_does(name: str, tmp_path: Path) -> None:
    predictor = described(name, tmp_path / "bundle")
    contract, task, draw = predictor.contract, predictor.task, np.random.default_rng(0)
    buckets = [{"model": b.name, "lengths": dict(b), "batch": 3, "filled": True} for b in contract.buckets]
    router = Router(json.loads(json.dumps(contract_of(contract, task, answers_of(contract, task), buckets))))
    for seed in range(9):
        sample = drawn(contract, seed)
        (item,) = router.items(tensors(sample))
        bucket = bucket_for(sample.lengths(contract), contract.buckets)
        assert item.bucket is not None
        assert item.lengths == sample.lengths(contract)
        assert router.buckets[item.bucket]["lengths"] == bucket
        for spec, given in zip(contract.inputs, router.pad([item], item.bucket).values(), strict=True):
            np.testing.assert_array_equal(given, collate([sample], contract, bucket, 3)[spec.name], strict=True)
        outputs = {
            s.name: draw.standard_normal(s.shape(3, bucket or {}), dtype=np.float32) * 2 for s in contract.outputs
        }
        router.cut(outputs, [item])
        found = router.answer(tensors(sample), [item])
        real = [slice(item.lengths[d] if isinstance(d, str) else d) for d in contract.outputs[0].dims[1:]]
        own = outputs[task.output][0][tuple(real)]
        for unit, p in enumerate(predictor.read(sample, predictor.rows({task.output: own}))):
            place = (0, unit) if contract.unit_dim else (0,)
            assert found["label"][0][unit].decode() == p.label
            if task.kind != "regression":
                np.testing.assert_array_equal(found["probability"][place], np.float32(list(p.probabilities.values())))
            if task.kind == "multilabel":
                assert tuple(np.asarray(task.labels)[found["holds"][place]]) == p.labels


def test_an_item_of_which_nothing_can_be_read_has_no_label(written: Path) -> None:
    found = answered(router_of(written, "cmerc"), written, {"speaker": np.zeros((1, 3), int)})
    assert found["label"].tolist() == [[b"", b"", b""]]
    assert np.isnan(found["log_prob"]).all()
    assert np.isnan(found["probability"]).all()
    assert found["probability"].shape == found["log_prob"].shape == (1, 3, 3)


def test_inputs_that_all_items_share_and_a_fixed_batch_leave_the_batches_to_the_router(tmp_path: Path) -> None:
    made = Bundle.create(tmp_path / "eea", described("mtee eea", tmp_path / "described").bundle.manifest)
    with made.commit() as change:
        for bucket, batch in zip(made.manifest.contract.buckets, (0, 2), strict=True):
            own = {"format": "onnx", "precision": "fp32", "lengths": bucket, "batch": batch, "exporter": "test"}
            model = f"variants/onnx-fp32/{bucket.name}.onnx"
            change.write(model, b"")
            change.add_variant(Variant(model=model, **own))
    head, dynamic, fixed = plan(made, batch=4).models
    assert [m.config.max_batch_size for m in (dynamic, fixed)] == [0, 0]
    assert [ports(m.config.input)["emotions"][1] for m in (dynamic, fixed)] == [[5, 6], [5, 6]]
    assert [ports(m.config.input)["text"][1] for m in (dynamic, fixed)] == [[-1, 6, 6], [2, 9, 6]]
    assert [ports(m.config.input)["text_lengths"][1] for m in (dynamic, fixed)] == [[-1], [2]]
    assert not any(m.config.HasField("dynamic_batching") for m in (dynamic, fixed))
    assert "emotions" not in ports(head.config.input)
    said = json.loads(head.files["1/contract.json"])
    assert [(b["batch"], b["filled"], b["batched"]) for b in said["buckets"]] == [(4, False, False), (2, True, False)]
    files = {name: len(content) for name, content in dynamic.files.items()}
    assert files == {f"warmup/{m}_lengths-{n}": 8 * n for n in (1, 4) for m in ("text", "audio", "vision")}
