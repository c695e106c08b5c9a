"""What `mer triton` writes: configurations as Triton's protobuf reads them, and a router that pads and answers as the
predictor does. Without a server; `test_triton_server.py` has one."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mtee_bundles
import numpy as np
import onnxruntime
import pytest
import typer
from conftest import Mer
from small_networks import NETWORKS

import cli
from mer_export import registry
from mer_export.bucket import Bucket, bucket_for
from mer_export.bundle import Bundle, Manifest, Variant, files
from mer_export.contract import Contract
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.collate import collate
from mer_export.data.given import OPTIONAL
from mer_export.data.open import stream_samples
from mer_export.data.samples import Sample
from mer_export.errors import BundleError, NotAvailableError, UnsupportedError, UntrustedError, UsageError
from mer_export.exporters.graph import external_data
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem, known_backends
from runtimes.backends.way import Way
from runtimes.predict.machine_profile import Entry, Profile, machine_class
from runtimes.predict.predictor import Prediction, Predictor
from runtimes.triton import router as router_module
from runtimes.triton.config import ENGINES, protobuf
from runtimes.triton.plan import _notes, answers_of, contract_of, plan
from runtimes.triton.repository import MARK, write
from runtimes.triton.router import Refusal, Router

pytest.importorskip("tritonclient.grpc")
DATA = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"
CUDA = SessionOptions(device="cuda")


@pytest.fixture(scope="module")
def cmerc() -> Bundle:
    return Bundle.open(BUNDLE)


@pytest.fixture
def copy(tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(BUNDLE, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def written(cmerc: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "repository"
    write(plan(cmerc, batch=4, workers=3), out)
    return out


@pytest.fixture(scope="module")
def dialogues(cmerc: Bundle) -> list[Sample]:
    return list(stream_samples(DIALOGUES, bundle_spec(cmerc, DIALOGUES)))


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


def test_a_bucket_is_a_model_whose_batches_triton_makes(written: Path) -> None:
    config = read(written / "cmerc-utterances8" / "config.pbtxt")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("onnxruntime", "model.onnx", 4)
    assert ports(config.input) == {
        "text": ("TYPE_FP32", [2, 8, 8]),
        "audio": ("TYPE_FP32", [8, 5]),
        "vision": ("TYPE_FP32", [8, 4]),
        "speaker": ("TYPE_INT64", [8]),
        "lengths": ("TYPE_INT64", [1]),
    }
    lengths = config.input[4]
    assert lengths.HasField("reshape")
    assert list(lengths.reshape.shape) == []
    assert ports(config.output) == {"log_prob": ("TYPE_FP32", [8, 3])}
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, group.KIND_CPU)
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_first_calls_are_of_whole_buckets_alone_and_in_the_largest_batch(written: Path) -> None:
    model = written / "cmerc-utterances8"
    config = read(model / "config.pbtxt")
    assert [(w.name, w.batch_size) for w in config.model_warmup] == [("1 item", 1), ("4 items", 4)]
    for sample in config.model_warmup:
        assert {n for n, given in sample.inputs.items() if not given.zero_data} == {"lengths"}
        given = sample.inputs["lengths"]
        assert np.frombuffer((model / "warmup" / given.input_data_file).read_bytes(), "<i8").tolist() == [8]


def test_the_router_takes_items_of_any_length_and_may_lack_modalities(written: Path) -> None:
    config = read(written / "cmerc" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("python", 64)
    assert ports(config.input)["text"] == ("TYPE_FP32", [2, -1, 8])
    assert ports(config.input)["lengths"] == ("TYPE_INT64", [1])
    assert all(port.allow_ragged_batch for port in config.input)
    assert [p.name for p in config.input if not p.optional] == ["speaker"]
    assert ports(config.output) == {
        "log_prob": ("TYPE_FP32", [-1, 3]),
        "label": ("TYPE_STRING", [-1]),
        "probability": ("TYPE_FP32", [-1, 3]),
    }
    assert json.loads(config.parameters["labels"].string_value) == ["neutral", "joy", "anger"]


def test_the_router_needs_numpy_alone(written: Path) -> None:
    source = (written / "cmerc" / "1" / "model.py").read_text()
    assert source == Path(router_module.__file__).read_text()
    found = {
        n for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for n in (a.name for a in node.names)
    }
    found |= {str(node.module) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert {n.split(".")[0] for n in found} - sys.stdlib_module_names == {"numpy", "triton_python_backend_utils"}


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


def test_openvino_gets_its_own_form_with_recurrent_layers_that_are_right(
    cmerc: Bundle, dialogues: list[Sample], tmp_path: Path
) -> None:
    if backend_problem("openvino"):
        pytest.skip(str(backend_problem("openvino")))
    import openvino

    made = plan(cmerc, runtime="openvino", workers=2)
    assert "computes fp32 in bf16" in made.notes[0]
    write(made, tmp_path / "repository")
    model = tmp_path / "repository" / "cmerc-utterances8"
    config = read(model / "config.pbtxt")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("openvino", "model.xml", 0)
    assert config.parameters["NUM_STREAMS"].string_value == "2"
    router = router_of(tmp_path / "repository", "cmerc")
    compiled = openvino.compile_model(model / "1" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    samples = [s for s in dialogues if len(s.units) > 4]
    items = [router.items(tensors(s))[0] for s in samples]
    router.cut({"log_prob": compiled(router.pad(items, 1))["log_prob"]}, items)
    with Predictor(cmerc) as predictor:
        for item, expected in zip(items, predictor.scores(samples), strict=True):
            np.testing.assert_allclose(item.outputs["log_prob"], expected, atol=1e-5)


def test_bf16_is_said_to_openvino(cmerc: Bundle) -> None:
    made = plan(cmerc, runtime="openvino", precision="bf16")
    assert made.models[1].config.parameters["HINT_BF16"].string_value == "YES"
    assert made.notes == []


def test_a_gpu_computes_fp32_in_fp32(cmerc: Bundle) -> None:
    def accelerator(precision: str) -> Any:
        config = plan(cmerc, options=SessionOptions(device="cuda:1"), precision=precision).models[1].config
        (group,) = config.instance_group
        assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 1, [1])
        return config.optimization.execution_accelerators.gpu_execution_accelerator[0]

    assert dict(accelerator("fp32").parameters) == {"use_tf32": "0"}
    assert dict(accelerator("tf32").parameters) == {"use_tf32": "1"}


def test_batch_threads_and_instances_are_those_of_the_machine_profile_where_there_is_one(
    copy: Bundle, tmp_path: Path
) -> None:
    onnx = [v for v in copy.manifest.variants if v.format == "onnx" and v.precision == "fp32"]
    files = copy.manifest.files
    options = SessionOptions(threads=1, batch=8)
    entries = [
        Entry(
            way=Way.of(v, "onnxruntime", options, workers=n),
            sha256=files[v.model].sha256,
            ms=1,
            p90=1,
            share=0.5,
            rounds=3,
        )
        for v in onnx
        for n in (1, 5)
    ]
    weights = copy.manifest.weights.sha256
    Profile(machine=machine_class(), weights_sha256=weights, source="test", entries=entries, load_average=0.0).save(
        copy
    )
    for goal in ("throughput", None):
        made = plan(Bundle.open(copy.root), goal=goal)
        assert [m.config.max_batch_size for m in made.models[1:]] == [8, 8]
        assert [m.config.instance_group[0].count for m in made.models] == [5, 5, 5]
    assert plan(Bundle.open(copy.root), workers=2).models[1].config.instance_group[0].count == 2
    with pytest.raises(UsageError, match="--goal says how many workers"):
        plan(copy, goal="throughput", workers=2)


def engine_of(flavour: str) -> Variant:
    return Variant(
        format="tensorrt",
        precision="fp32",
        lengths=Bucket(utterances=8),
        batch=2,
        model="variants/tensorrt-fp32-utterances8-b2/model.engine",
        exporter="test",
        options={"engine_key": {"flavour": flavour, "version": "10.9", "gpu": "H100"}},
    )


@pytest.fixture
def with_engine(copy: Bundle, request: pytest.FixtureRequest) -> Bundle:
    """A bundle with a file in place of an engine: no TensorRT builds one without a GPU."""
    variant = engine_of(request.param)
    with copy.commit() as change:
        change.write(variant.model, b"plan")
        change.add_variant(variant)
    return Bundle.open(copy.root, trust=True)


@pytest.mark.parametrize("with_engine", ["tensorrt"], indirect=True)
def test_an_engine_is_served_with_its_batch_where_somebody_vouches_for_it(with_engine: Bundle, tmp_path: Path) -> None:
    made = plan(with_engine, name="meld", runtime="tensorrt", options=CUDA)
    assert made.notes == ["the engines need TensorRT 10.9 on H100: take the release of Triton that has it"]
    write(made, tmp_path / "repository")
    config = read(tmp_path / "repository" / "meld-utterances8" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 0)
    assert ports(config.input)["lengths"] == ("TYPE_INT64", [2])
    assert (tmp_path / "repository" / "meld-utterances8" / "1" / "model.plan").read_bytes() == b"plan"
    with pytest.raises(UntrustedError, match="machine code that you did not export"):
        plan(Bundle.open(with_engine.root), runtime="tensorrt", options=CUDA)


@pytest.mark.parametrize("with_engine", ["tensorrt-rtx"], indirect=True)
def test_engines_of_another_library_are_refused(with_engine: Bundle) -> None:
    with pytest.raises(UnsupportedError, match="an engine of tensorrt-rtx, which Triton has no backend for"):
        plan(with_engine, runtime="tensorrt", options=CUDA)


@pytest.mark.parametrize(
    ("how", "error", "problem"),
    [
        ({"runtime": "torchscript"}, UnsupportedError, "what runs in Triton is one of"),
        ({"runtime": "tensorrt"}, UnsupportedError, "pass --device cuda"),
        ({"runtime": "tensorrt", "options": CUDA}, UsageError, "run mer export --format tensorrt --precision fp32"),
        ({"precision": "fp16"}, UsageError, "has no fp16 variant for runtime onnxruntime: run mer export"),
        ({"runtime": "openvino", "precision": "int8"}, UnsupportedError, "does not compute in int8"),
        ({"name": "a/b"}, UsageError, "pass --name"),
        ({"goal": "latency"}, UsageError, "run mer tune"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_way_out(
    cmerc: Bundle, how: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        plan(cmerc, **how)


def test_a_bucket_that_is_there_in_stages_alone_is_refused_by_name(copy: Bundle) -> None:
    whole = next(v for v in copy.manifest.variants if v.name == "onnx-fp32-utterances8-bdynamic")
    copy.manifest.variants.remove(whole)
    copy.manifest.variants.append(whole.model_copy(update={"stages": ("text", "rest")}))
    with pytest.raises(UnsupportedError, match=r"utterances8-bdynamic-stages is in stages.*--seq-len utterances=8"):
        plan(copy)


def test_tokens_and_encoders_are_said_to_stay_with_whoever_asks(tmp_path: Path) -> None:
    """Neither sentences nor recordings are read."""
    predictor = described("emt", tmp_path / "emt")
    predictor.bundle.manifest.encoders["audio"] = ["encoders/whisper"]
    assert _notes(predictor, ENGINES["onnxruntime"]) == [
        "the router takes input_ids, token_type_ids, not sentences: tokenise as the bundle does",
        "encoders stay in the bundle: the router takes features of audio",
    ]


def test_a_name_that_a_network_uses_is_not_used_twice(cmerc: Bundle) -> None:
    contract = cmerc.manifest.contract
    taken = contract.model_copy(update={"outputs": (contract.outputs[0].model_copy(update={"name": "label"}),)})
    with pytest.raises(UnsupportedError, match="calls an output 'label'"):
        answers_of(taken, cmerc.manifest.task)


def test_weights_that_buckets_share_lie_on_the_disk_once(
    copy: Bundle, dialogues: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "SMALLEST", 64)
    monkeypatch.setattr(external_data, "WORTH", 1024)
    present = {"weights": copy.manifest.weights.sha256}
    for variant in [v for v in copy.manifest.variants if v.format == "onnx" and v.precision == "fp32"]:
        with copy.commit() as change:
            made = change.file("variants/made/model.onnx")
            shutil.copyfile(copy.root / variant.model, made)
            model = external_data.share_weights(copy, change, variant, made)
            change.add_variant(variant.model_copy(update={"model": model, "options": variant.options | present}))
    write(plan(copy, name="shared"), tmp_path / "repository")
    one, other = (tmp_path / "repository").glob("*/1/*.weights")
    assert one.samefile(other)
    write(plan(copy, name="shared"), tmp_path / "repository", force=True)
    router = router_of(tmp_path / "repository", "shared")
    with Predictor(copy) as predictor:
        for sample in dialogues[:3]:
            same(answered(router, tmp_path / "repository", tensors(sample)), 0, list(predictor.predict([sample])))


def test_what_is_there_is_replaced_only_as_it_was_written(cmerc: Bundle, tmp_path: Path) -> None:
    out, made = tmp_path / "repository", plan(cmerc)
    out.mkdir()
    write(made, out)
    before = contents(out)
    with pytest.raises(UsageError, match="exists: pass --force to replace it"):
        write(made, out)
    write(plan(cmerc, name="meld"), out, force=True)
    assert {n.split("-")[0].split("/")[0] for n in contents(out) if n != MARK} == {"meld"}
    write(made, out, force=True)
    assert contents(out) == before
    (out / "cmerc" / "config.pbtxt").write_text("name: 'cmerc'\n")
    with pytest.raises(UsageError, match=r"cmerc/config.pbtxt was changed or added since"):
        write(made, out, force=True)
    assert (out / "cmerc" / "config.pbtxt").read_text() == "name: 'cmerc'\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="was not written by mer triton"):
        write(made, tmp_path / "other", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "repository"]


def test_a_repository_is_not_written_into_the_bundle(copy: Bundle) -> None:
    with pytest.raises(UsageError, match="is in the bundle"):
        write(plan(copy), copy.root / "triton")
    copy.verify()


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_goes_wrong_leaves_the_old_repository(
    cmerc: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    out = tmp_path / "repository"
    write(plan(cmerc), out)
    before = contents(out)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    other = plan(cmerc, name="meld")
    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write(other, out, force=True)
    assert contents(out) == before
    write(other, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]
    assert (out / "meld").is_dir()
    assert os.stat(out).st_mode & 0o777 == os.stat(tmp_path / "repository" / "meld").st_mode & 0o777


def test_what_a_killed_writer_left_goes_with_the_next_and_another_ones_work_stays(
    cmerc: Bundle, tmp_path: Path
) -> None:
    killed, living = tmp_path / ".repository.1.ab.tmp", tmp_path / ".repository.2.cd.tmp"
    for folder in (killed, living):
        (folder / "cmerc").mkdir(parents=True)
    with files.holding(living):
        write(plan(cmerc), tmp_path / "repository")
    assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, "repository"]


KILLED_AT_EVERY_LINE = """
import os, sys
from pathlib import Path
from mer_export.bundle import files

out, killed, states = Path(sys.argv[1]), 0, set()

def write(step):
    lines = 0
    def trace(frame, event, arg):
        nonlocal lines
        if frame.f_code.co_filename == files.__file__:
            lines += event == "line"
            if lines == step:
                os.kill(os.getpid(), 9)
            return trace
    sys.settrace(trace)
    with files.replacing_folder(out) as fresh:
        for name in "ab":
            (fresh / name).write_text(str(step))
    os._exit(0)

for step in range(1, 1000):
    before = {p.read_text() for p in out.iterdir()}
    child = os.fork()
    if not child:
        write(step)
    status = os.waitpid(child, 0)[1]
    after = [p.read_text() for p in out.iterdir()]
    assert len(after) == 2 and len(set(after)) == 1 and set(after) <= before | {str(step)}, (step, after)
    states.add(set(after) == before)
    if status == 0:
        break
    killed += 1
print(killed, states == {True, False}, sorted(p.name for p in out.parent.iterdir()))
"""


def test_a_folder_is_the_old_or_the_new_one_wherever_its_writer_is_killed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in "ab":
        (tmp_path / "out" / name).write_text("0")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    killed, both, left = done.stdout.split(" ", 2)
    assert int(killed) > 30
    assert (both, left) == ("True", "['out']\n")


def test_a_link_in_a_repository_is_not_replaced(cmerc: Bundle, tmp_path: Path) -> None:
    write(plan(cmerc), tmp_path / "repository")
    (tmp_path / "repository" / "cmerc" / "2").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="cmerc/2 was changed or added since"):
        write(plan(cmerc), tmp_path / "repository", force=True)


def test_the_documentation_names_every_option_and_answer() -> None:
    page = (Path(__file__).parent.parent / "docs" / "triton.md").read_text()
    named = {w.strip("`,.:()=$") for w in page.split()}
    options = {o for p in typer.main.get_command(cli.app).commands["triton"].params for o in p.opts if len(o) > 2}
    assert options - {"--help", "--verbose", "--quiet", "--json", "bundle"} <= named
    assert {"label", "probability", "holds", *ENGINES} <= named


def test_a_damaged_file_is_not_served(copy: Bundle, tmp_path: Path) -> None:
    made = plan(copy)
    variant = copy.find("onnx-fp32-utterances8-bdynamic")
    file = copy.root / variant.model
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="does not match its checksum"):
        write(made, tmp_path / "repository")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


def test_the_command_writes_says_and_plans(mer: Mer, tmp_path: Path) -> None:
    words = ("triton", BUNDLE, "--out", tmp_path / "repository", "--workers", "1", "--json")
    code, out, err = mer(*words, "--dry-run")
    assert (code, err) == (0, "")
    planned = json.loads(out)
    assert not (tmp_path / "repository").exists()
    code, out, err = mer(*words)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert list(told["models"]) == list(planned["models"]) == ["cmerc-utterances4", "cmerc-utterances8"]
    assert json.loads((tmp_path / "repository" / MARK).read_text())["models"] == told["models"]
    code, out, err = mer(*words[:-1])
    assert (code, out) == (2, "")
    assert err == f"mer: {tmp_path / 'repository'} exists: pass --force to replace it\n"


def test_without_tritons_protobuf_the_extra_is_named(cmerc: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(NotAvailableError, match=r"pip install 'mer-export\[triton\]'"):
        plan(cmerc)


def test_every_engine_of_the_table_is_a_runtime_with_the_precisions_it_has() -> None:
    for name, engine in ENGINES.items():
        record = known_backends()[name]
        reduced = {p for own in record.reduces.values() for p in own}
        assert set(engine.precisions) <= {*record.precisions, *reduced}, name
