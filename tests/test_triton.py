"""What `mer triton` writes: configurations as Triton's protobuf reads them. Without a server;
`test_triton_server.py` has one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import Mer
from triton_repositories import CMERC, described, ports, read, repository_of, router_of, samples_of, tensors

import cli
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Variant
from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError, UnsupportedError, UntrustedError, UsageError
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem, known_backends
from runtimes.backends.way import Way
from runtimes.predict.machine_profile import Entry, Profile, machine_class
from runtimes.predict.predictor import Predictor
from runtimes.triton.config import ENGINES
from runtimes.triton.plan import _notes, answers_of, plan
from runtimes.triton.repository import MARK, write

pytest.importorskip("tritonclient.grpc")
CUDA = SessionOptions(device="cuda")


@pytest.fixture(scope="module")
def cmerc() -> Bundle:
    return Bundle.open(CMERC)


@pytest.fixture
def copy(tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(CMERC, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def written(cmerc: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository_of(cmerc, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def dialogues(cmerc: Bundle) -> list[Sample]:
    return samples_of(cmerc)


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


def test_batch_threads_and_instances_are_those_of_the_machine_profile_where_there_is_one(copy: Bundle) -> None:
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


def test_the_documentation_names_every_option_and_answer() -> None:
    page = (Path(__file__).parent.parent / "docs" / "triton.md").read_text()
    named = {w.strip("`,.:()=$") for w in page.split()}
    options = {o for p in typer.main.get_command(cli.app).commands["triton"].params for o in p.opts if len(o) > 2}
    assert options - {"--help", "--verbose", "--quiet", "--json", "bundle"} <= named
    assert {"label", "probability", "holds", *ENGINES} <= named


def test_the_command_writes_says_and_plans(mer: Mer, tmp_path: Path) -> None:
    words = ("triton", CMERC, "--out", tmp_path / "repository", "--workers", "1", "--json")
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
