"""The module in which an export goes wrong, and what to keep in fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mtee_bundles
import numpy as np
import onnx
import planted as faults
import pytest
import small_bundle
import small_tab
from conftest import Mer
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

from mer_export.agreement.policy import RULES, Rule
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.contract import Contract, TensorSpec
from mer_export.data.samples import Sample
from mer_export.errors import ParityError, UnsupportedError, UsageError
from mer_export.exporters import export_variant, exported_program
from mer_export.exporters import onnx as onnx_exporter
from mer_export.exporters.export import job_of, planned, wanted_variant
from mer_export.exporters.graph.names import TOP, module_of
from mer_export.models.cmerc.network import Cmerc, Encoder, Frequency
from mer_export.progress import SILENT
from runtimes.backends.session import Artefact, SessionOptions
from runtimes.backends.way import Way
from runtimes.debug import mixed, modules, values
from runtimes.debug.modules import NOISE, ModuleRow, compare_modules
from runtimes.debug.onnx_side import OnnxSide
from runtimes.debug.parity import SEALED, SIDES, debug_parity, require
from runtimes.debug.report import DebugReport
from runtimes.debug.values import Shelf, distance


class Case(NamedTuple):
    bundle: Bundle
    samples: list[Sample]
    variant: str


def _cmerc(root: Path) -> tuple[Bundle, list[Sample], Bucket]:
    bundle = small_bundle.make_bundle(root)
    small_bundle.randomise(bundle)
    return bundle, small_bundle.make_samples(8)[2:8], Bucket(utterances=8)


def _tab(root: Path) -> tuple[Bundle, list[Sample], Bucket]:
    bundle = small_tab.make_tab(root, "text_tab")
    contract = bundle.manifest.contract
    return bundle, [small_tab.spoken(contract, seed) for seed in range(3)], contract.buckets[0]


def _mtee(root: Path) -> tuple[Bundle, list[Sample], Bucket]:
    bundle = mtee_bundles.make_bundle(root, "transformer")
    samples = mtee_bundles.make_samples(mtee_bundles.config_of("transformer"))[:4]
    return bundle, samples, bundle.manifest.contract.buckets[-1]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """A bundle of three systems with one fp32 ONNX variant each; what PyTorch captures of a network is kept."""
    root, captured = tmp_path_factory.mktemp("debug"), onnx_exporter.captured
    kept: dict[tuple[Any, ...], Any] = {}

    def once(job: Any) -> Any:
        size = sum(float(p.abs().sum()) for p in job.model.parameters())
        key = (*(name for name, _ in job.model.named_modules()), job.lengths, job.batch, size)
        if key not in kept:
            kept[key] = captured(job)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_exporter, "captured", once)
        made = {}
        for make in (_cmerc, _tab, _mtee):
            name = make.__name__.strip("_")
            bundle, samples, bucket = make(root / name)
            made[name] = Case(bundle, samples, export_variant(bundle, "onnx", bucket, example=samples).name)
        yield made


PLANTED = (
    ("cmerc", "changed_weight", "classifier"),
    ("cmerc", "changed_weight", "text_linear"),
    ("cmerc", "swapped_gates", "text_encoder.layers"),
    ("cmerc", "another_activation", "hypergraph"),
    ("cmerc", "fp16_overflow", "frequency"),
    ("tab", "large_epsilon", "encoders.text.layers.0.norm"),
    ("tab", "dropped_mask", "encoders.text.layers.1.attention"),
    ("tab", "swapped_axis", "encoders.text.layers.0.attention"),
    ("tab", "transposed_weight", "encoders.text.layers.0.value"),
    ("tab", "dropped_shift", "encoders.text.layers.0.out"),
    ("mtee", "swapped_axis", "layers.1.attention"),
    ("mtee", "another_activation", "layers.0"),
    ("mtee", "large_epsilon", "layers.1.norm2"),
)


@pytest.mark.parametrize(("system", "fault", "module"), PLANTED)
def test_a_planted_fault_is_found_in_its_module(
    cases: dict[str, Case], tmp_path: Path, system: str, fault: str, module: str
) -> None:
    case = cases[system]
    bundle = faults.planted(case.bundle, tmp_path / "bundle", case.variant, faults.FAULTS[fault], module)
    report = debug_parity(bundle, case.variant, case.samples)
    assert (report.verdict, report.module) == ("fail", module)


@pytest.mark.parametrize("system", ["cmerc", "tab", "mtee"])
def test_no_module_of_a_sound_export_is_beyond_noise(cases: dict[str, Case], system: str) -> None:
    case = cases[system]
    report = debug_parity(case.bundle, case.variant, case.samples)
    assert (report.verdict, report.module) == ("pass", None)
    assert len(report.rows) > 5
    assert max(r.own for r in report.rows) < NOISE["fp32"] / 10
    assert report.seconds > 0
    assert report.peak_mib > 0


def test_the_smallest_sample_is_written_with_both_answers(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["cmerc"], tmp_path / "new" / "smallest.npz"
    fault = faults.FAULTS["changed_weight"]
    bundle = faults.planted(case.bundle, tmp_path / "bundle", case.variant, fault, "classifier")
    report = debug_parity(bundle, case.variant, case.samples, out=out)
    assert report.smallest == {"utterances": 1}
    with np.load(out) as kept:
        contract = bundle.manifest.contract
        assert {*kept} == {*(s.name for s in contract.inputs), "log_prob", "candidate.log_prob"}
        assert kept["lengths"].tolist() == [1]
        assert distance(kept["log_prob"], kept["candidate.log_prob"]) > NOISE["fp32"]
    lacking = DebugReport.model_validate(report.model_dump() | {"lengths": {"text_len": 0, "audio_len": 3}})
    assert "(text0-audio3)" in lacking.page()


def test_the_command_says_where_and_ends_as_parity_does(
    cases: dict[str, Case], tmp_path: Path, mer: Mer, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases["cmerc"]
    monkeypatch.setattr("runtimes.features.completed.split_samples", lambda *_: case.samples)
    bundle = faults.planted(
        case.bundle, tmp_path / "bundle", case.variant, faults.FAULTS["dropped_shift"], "classifier"
    )
    code, out, err = mer("debug", "parity", bundle.root, case.variant, "--data", tmp_path, "-q")
    assert code == 3
    assert "first error in **classifier**" in out
    assert err.startswith(f"mer: {case.variant} differs, first in classifier: ")
    code, out, _ = mer("debug", "parity", case.bundle.root, case.variant, "--data", tmp_path, "-q", "--json")
    assert code == 0
    assert json.loads(out)["verdict"] == "pass"
    code, _, err = mer("debug", "parity", case.bundle.root, "onnx-fp64", "--data", tmp_path)
    assert (code, "no variant 'onnx-fp64'" in err) == (2, True)


@pytest.mark.parametrize("format", sorted(SEALED))
def test_machine_code_is_refused_with_what_to_debug_in_its_place(
    cases: dict[str, Case], tmp_path: Path, mer: Mer, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    case = cases["cmerc"]
    monkeypatch.setattr("runtimes.features.completed.split_samples", lambda *_: case.samples)
    bundle = Bundle.open(shutil.copytree(case.bundle.root, tmp_path / "bundle"))
    sealed = bundle.find(case.variant).model_copy(update={"format": format, "model": "variants/sealed/model"})
    with bundle.commit() as change:
        change.write(sealed.model, b"machine code")
        change.add_variant(sealed)
    code, out, err = mer("debug", "parity", bundle.root, sealed.name, "--data", tmp_path, "--trust", "-q")
    assert (code, out) == (UnsupportedError.exit_code, "")
    assert err == f"mer: {sealed.name}: {SEALED[format]}\n"
    # What the sentence tells to debug is something that the command takes.
    instead = {"aot_inductor": "exported_program", "tensorrt": "onnx"}[format]
    assert [name for name in SIDES if name in SEALED[format]] == [instead]


def test_openvino_is_looked_into_through_the_same_file(cases: dict[str, Case], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    case = cases["cmerc"]
    fault = faults.FAULTS["swapped_gates"]
    bundle = faults.planted(case.bundle, tmp_path / "bundle", case.variant, fault, "text_encoder.layers")
    report = debug_parity(bundle, case.variant, case.samples, runtime="openvino")
    assert (report.runtime, report.module) == ("openvino", "text_encoder.layers")


def test_a_runtime_that_does_not_run_what_is_not_written_is_refused(cases: dict[str, Case]) -> None:
    case = cases["cmerc"]
    name = case.variant.replace("fp32", "int8")
    with pytest.raises(UsageError, match=f"openvino does not run {name}: leave --runtime out"):
        debug_parity(case.bundle, name, case.samples, runtime="openvino")
    with pytest.raises(UsageError, match=f"no runtime runs {name} in bf16: leave --precision out"):
        debug_parity(case.bundle, name, case.samples, reduced="bf16")


def test_programs_of_other_weights_differ_in_their_module(
    exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = ("exported_program", "torchscript")
    bundle = small_bundle.part_of(exported, tmp_path / "bundle", *((format, 4) for format in formats))
    weights = load_file(bundle.path(WEIGHTS))
    with bundle.commit() as change:
        save_file(weights | {"frequency.gates.0.bias": 0 * weights["frequency.gates.0.bias"]}, change.file(WEIGHTS))
    capture = cache(lambda _: exported_program.capture(small))
    for variant in bundle.manifest.variants:
        small = job_of(bundle, variant)
        monkeypatch.setitem(SIDES, variant.format, (lambda _: capture(bundle.root), SIDES[variant.format][1]))
        report = debug_parity(bundle, variant.name, small_bundle.make_samples(4))
        assert (report.verdict, report.module) == ("fail", "frequency")
        sound = {r.module: r.own for r in report.rows if r.module != "frequency"}
        assert {"text_norm", "hypergraph", "classifier"} <= {*sound}
        assert max(sound.values()) < NOISE["fp32"] / 10


@pytest.mark.parametrize(("kind", "module"), [(Encoder, "text_encoder"), (Frequency, "frequency"), (Cmerc, TOP)])
def test_a_choice_that_capturing_froze_is_found_in_its_module(
    cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], module: str
) -> None:
    """The network does otherwise than when it was captured, as one does that asks whether it is being exported."""
    case, before = cases["cmerc"], kind.forward

    def louder(found: Any) -> Any:
        return type(found)(map(louder, found)) if isinstance(found, tuple | list) else 1.5 * found

    monkeypatch.setattr(kind, "forward", lambda *given, **named: louder(before(*given, **named)))
    report = debug_parity(case.bundle, case.variant, case.samples)
    assert (report.verdict, report.module, report.rows) == ("fail", module, [])
    assert f"capturing froze a choice in {module} " in report.page()
    with pytest.raises(ParityError, match=f"differs, first in {module}: "):
        require(report)


def test_what_is_held_at_a_time_changes_no_row(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases["mtee"]
    fault = faults.FAULTS["large_epsilon"]
    bundle = faults.planted(case.bundle, tmp_path / "bundle", case.variant, fault, "layers.1.norm2")
    at_once = debug_parity(bundle, case.variant, case.samples)
    for place in (values, modules):
        monkeypatch.setattr(place, "HELD", 2000)
    in_parts = debug_parity(bundle, case.variant, case.samples)
    assert in_parts.module == at_once.module == "layers.1.norm2"
    for one, other in zip(in_parts.rows, at_once.rows, strict=True):
        assert (one.module, one.values) == (other.module, other.values)
        # What a runtime fuses depends on what is read off.
        assert [one.error, one.own] == pytest.approx([other.error, other.own], rel=1e-3, abs=NOISE["fp32"] / 10)


def test_what_a_loop_reads_from_around_it_is_given(tmp_path: Path) -> None:
    """y = x plus, twice, what another module makes of x; both modules are a fifth off."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Add", ["state", "cast"], ["off"]),
            helper.make_node("Mul", ["off", "fifth"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, ()),
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, (1, 3)),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, (1, 3)),
        ],
    )
    nodes = [
        helper.make_node("Mul", ["x", "fifth"], ["made"], name="first/Mul_0"),
        # Only the loop reads it, whose name says nothing.
        helper.make_node("Cast", ["made"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Loop", ["count", "true", "x"], ["y"], name="second/Loop_1", body=body),
    ]
    constants = {"fifth": np.float32(1.2), "count": np.int64(1), "true": np.bool_(True)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3))],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    spec = [TensorSpec(name=name, dtype="float32", dims=("batch", 3)) for name in "xy"]
    contract = Contract(inputs=(spec[0],), outputs=(spec[1],), buckets=(Bucket(),), longest=Bucket())
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    reference = Shelf(tmp_path / "reference")
    for name, value in {"made": x, "y": 2 * x}.items():
        reference.put(name, value)
    artefact = Artefact(path, contract, Bucket(), 0, "fp32", {}, digest="loop")
    side = OnnxSide(artefact, Way(backend="onnxruntime", options=SessionOptions(threads=1)), reference.shapes, tmp_path)
    rows, _ = compare_modules(side, {"x": x}, reference, Shelf(tmp_path / "exact"), lambda _: 0.0)
    assert [(r.module, r.values) for r in rows] == [("first", 1), ("second", 1)]
    assert [r.own for r in rows] == pytest.approx([0.2, 0.2])
    assert rows[1].error == pytest.approx((1.2 * 2.2 - 2) / 2)


def test_modules_that_are_kept_have_no_int8_product(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["tab"]
    bundle = Bundle.open(shutil.copytree(case.bundle.root, tmp_path / "bundle"))
    lengths = bundle.find(case.variant).lengths
    keep = ["encoders.text.layers.0", "hidden"]
    variant = export_variant(bundle, "onnx", lengths, precision="int8", example=case.samples, keep_fp32=keep)
    assert variant.options["keep_fp32"] == keep
    graph = onnx.load(bundle.path(variant.model)).graph
    rounded = {str(module_of(n.name)) for n in graph.node if n.op_type == "MatMulInteger"}
    assert "encoders.text.layers.1.value" in rounded
    assert not [m for m in rounded if m == "hidden" or m.startswith("encoders.text.layers.0.")]
    again = export_variant(bundle, "onnx", lengths, precision="int8", example=case.samples, keep_fp32=keep[:1])
    assert again.options["keep_fp32"] == keep[:1]
    with pytest.raises(UsageError, match="keep_fp32 encoder: no node of the graph is of that module"):
        export_variant(bundle, "onnx", lengths, precision="int8", keep_fp32=["encoder"])


LAYER = "encoders.text.layers.0"
OUTLIERS = (
    # One scale for the whole tensor that `out` reads: its other channels are rounded away.
    ("int8", f"{LAYER}.out", {f"{LAYER}.out"}),
    # No number of fp16 is as large, neither where it is made nor where it is read.
    ("fp16", f"{LAYER}.value", {f"{LAYER}.{name}" for name in ("value", "attention", "out")}),
)


def test_what_the_recipe_keeps_in_fp32_stays_in_the_list(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["cmerc"]
    bundle = Bundle.open(shutil.copytree(case.bundle.root, tmp_path / "bundle"))
    with bundle.commit() as change:
        change.write("config.yaml", "keep_fp32: [classifier]\n")
    made = wanted_variant(bundle, case.variant.replace("fp32", "int8"))
    assert job_of(bundle, made).keep_fp32 == ["classifier"]
    said = {"variant": made.name, "runtime": "onnxruntime", "precision": "int8", "written": False, "verdict": "fail"}
    found = {"reasons": [], "samples": 1, "sample": "d", "lengths": {}, "output": "log_prob", "max_abs": 1, "used": 2}
    more = [{"module": "hypergraph", "more_bytes": 1, "more_ms": 0.1, "used": 0.4}]
    report = DebugReport.model_validate(said | found | {"kept": made.options["keep_fp32"], "keep_fp32": more})
    assert "    keep_fp32: [classifier, hypergraph]" in report.page()


def test_a_plan_knows_which_modules_a_file_keeps(cases: dict[str, Case]) -> None:
    bundle = Bundle.open(cases["cmerc"].bundle.root)
    there = bundle.find(cases["cmerc"].variant).model_copy(update={"precision": "int8"})
    bundle.manifest.variants.append(there)
    said = [
        planned(bundle, ("onnx", "int8", there.lengths, 0), 20, False, False, keep_fp32=keep)[1]
        for keep in (None, ["classifier"])
    ]
    assert said == ["up to date", "exported again"]


@pytest.mark.parametrize(("precision", "module", "guilty"), OUTLIERS)
def test_the_block_list_of_a_refused_export_makes_it_pass(
    cases: dict[str, Case], tmp_path: Path, precision: str, module: str, guilty: set[str]
) -> None:
    """One channel between two products is larger than the others by a power of 2, which changes no answer in fp32."""
    bundle, samples, lengths = _tab(tmp_path / "bundle")
    weights = load_file(bundle.path(WEIGHTS))
    for name in ("weight", "bias"):
        weights[f"{LAYER}.value.{name}"][0] *= 2.0**18
    weights[f"{LAYER}.out.weight"] *= 8
    weights[f"{LAYER}.out.weight"][:, 0] *= 2.0**-18
    with bundle.commit() as change:
        save_file(weights, change.file(WEIGHTS))
    export_variant(bundle, "onnx", lengths, example=samples)
    with pytest.raises(ParityError, match=f"in {precision} "):
        export_variant(bundle, "onnx", lengths, precision=precision, example=samples)
    report = debug_parity(bundle, f"onnx-{precision}-{lengths.name}-bdynamic", samples)
    assert report.module == module
    kept = [k.module for k in report.keep_fp32]
    assert {*kept} <= guilty
    assert report.keep_fp32[-1].used < 0.5 < report.used
    assert all(k.more_bytes for k in report.keep_fp32)
    # The last line of the page, as it stands in a recipe.
    line = next(text.strip() for text in report.page().splitlines() if "keep_fp32: [" in text)
    with bundle.commit() as change:
        change.write("config.yaml", f"data: {{}}\n{line}\n")
    variant = export_variant(bundle, "onnx", lengths, precision=precision, example=samples)
    assert variant.options["keep_fp32"] == kept


def test_a_search_keeps_what_the_limit_needs_and_says_what_it_tried(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases["cmerc"]
    bundle = Bundle.open(shutil.copytree(case.bundle.root, tmp_path / "bundle"))
    wanted = bundle.find(case.variant).model_copy(update={"precision": "int8", "model": ""})
    found = mixed.search(bundle, wanted, case.samples, limit=100)
    assert (found.keep_fp32, [t.within for t in found.trials]) == ([], [True])
    monkeypatch.setitem(RULES, "int8", Rule(atol=2e-2, rtol=0.0, flip_share=1.0, metric_drop=100.0))
    found = mixed.search(bundle, wanted, case.samples, limit=100)
    nothing, everything = [t for t in found.trials if t.bytes][:2]
    assert (nothing.keep_fp32, nothing.within, everything.within) == ([], False, True)
    assert 0 < len(found.keep_fp32) < len(everything.keep_fp32)
    chosen = next(t for t in found.trials if t.keep_fp32 == found.keep_fp32)
    assert chosen.within
    assert nothing.bytes != chosen.bytes
    assert all(t.ms > 0 for t in found.trials if t.bytes)
    made = export_variant(
        *(bundle, "onnx", wanted.lengths, 0, "int8"),
        example=case.samples,
        keep_fp32=found.keep_fp32,
        noted={"within": found.model_dump()},
    )
    assert made.options["keep_fp32"] == found.keep_fp32
    assert len(made.options["within"]["trials"]) == len(found.trials)
    monkeypatch.setitem(RULES, "int8", Rule(atol=1e-9, rtol=0.0))
    with pytest.raises(ParityError, match="no list of modules in fp32 keeps onnx-int8"):
        mixed.search(bundle, wanted, case.samples, limit=0.5)


def test_a_search_ends_with_its_trials(cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the lists leaves nothing to reduce."""
    case = cases["cmerc"]
    rows = [ModuleRow(module=f"m{k}", values=1, entering=0, error=1, growth=None, own=1) for k in range(40)]
    monkeypatch.setattr(mixed, "debug_variant", lambda *_, **__: SimpleNamespace(rows=rows))
    nothing = mixed.Trial(keep_fp32=[], within=False, flips=0, flips_beyond_noise=0, lost=0, bytes=0, ms=0)
    monkeypatch.setattr(mixed._Search, "_try", lambda _, keep: nothing.model_copy(update={"keep_fp32": keep}))
    run = mixed._Search(None, None, case.bundle.manifest.task, 0.2, tmp_path, SILENT)  # type: ignore[arg-type]
    with pytest.raises(ParityError, match=f"no list of modules .* the best of {mixed.MOST}"):
        mixed._choose(run, case.bundle, case.bundle.find(case.variant), [])


def test_a_distance_is_over_the_size_of_a_value_and_leaves_masks_out() -> None:
    reference = np.array([0.0, 2.0, -4.0, -1e9, -np.inf])
    assert distance(reference, reference) == 0
    assert distance(reference, reference + np.array([0, 0, 0.4, 0, 0])) == pytest.approx(0.1)
    assert distance(reference, np.array([0.0, 2.0, -4.0, -2e9, -np.inf])) == pytest.approx(1.0)
    assert distance(reference, np.array([0.0, np.nan, -4.0, -1e9, -np.inf])) == 1e12
    assert distance(reference, np.array([0.0, 2.0, -4.0, -1e9, 0.0])) == 1e12
