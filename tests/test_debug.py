"""The module in which an export goes wrong, and what to keep in fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mtee_bundles
import numpy as np
import onnx
import planted as faults
import pytest
import small_bundle
import small_tab
from conftest import Mer
from safetensors.torch import load_file, save_file

from mer_export.agreement.policy import RULES, Rule
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.data.samples import Sample
from mer_export.errors import ParityError, UsageError
from mer_export.exporters import export_variant, exported_program
from mer_export.exporters import onnx as onnx_exporter
from mer_export.exporters.export import job_of
from mer_export.exporters.graph.names import module_of
from runtimes.debug import mixed
from runtimes.debug.modules import NOISE
from runtimes.debug.parity import SIDES, debug_parity
from runtimes.debug.values import distance


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
        key = (*(name for name, _ in job.model.named_modules()), job.lengths, job.batch)
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
    case, out = cases["cmerc"], tmp_path / "smallest.npz"
    fault = faults.FAULTS["changed_weight"]
    bundle = faults.planted(case.bundle, tmp_path / "bundle", case.variant, fault, "classifier")
    report = debug_parity(bundle, case.variant, case.samples, out=out)
    assert report.smallest == Bucket(utterances=1)
    with np.load(out) as kept:
        contract = bundle.manifest.contract
        assert {*kept} == {*(s.name for s in contract.inputs), "log_prob", "candidate.log_prob"}
        assert kept["lengths"].tolist() == [1]
        assert distance(kept["log_prob"], kept["candidate.log_prob"]) > NOISE["fp32"]


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


def test_openvino_is_looked_into_through_the_same_file(cases: dict[str, Case], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    case = cases["cmerc"]
    fault = faults.FAULTS["swapped_gates"]
    bundle = faults.planted(case.bundle, tmp_path / "bundle", case.variant, fault, "text_encoder.layers")
    report = debug_parity(bundle, case.variant, case.samples, runtime="openvino")
    assert (report.runtime, report.module) == ("openvino", "text_encoder.layers")


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


def test_a_recipe_says_what_exports_keep(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["mtee"]
    bundle = Bundle.open(shutil.copytree(case.bundle.root, tmp_path / "bundle"))
    module = next(str(module_of(n.name)) for n in onnx.load(bundle.path(bundle.find(case.variant).model)).graph.node)
    with bundle.commit() as change:
        change.write("config.yaml", f"data: {{}}\nkeep_fp32: [{module}]\n")
    lengths = bundle.find(case.variant).lengths
    variant = export_variant(bundle, "onnx", lengths, precision="fp16", example=case.samples)
    assert variant.options["keep_fp32"] == [module]


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


def test_a_distance_is_over_the_size_of_a_value_and_leaves_masks_out() -> None:
    reference = np.array([0.0, 2.0, -4.0, -1e9, -np.inf])
    assert distance(reference, reference) == 0
    assert distance(reference, reference + np.array([0, 0, 0.4, 0, 0])) == pytest.approx(0.1)
    assert distance(reference, np.array([0.0, 2.0, -4.0, -2e9, -np.inf])) == pytest.approx(1.0)
    assert distance(reference, np.array([0.0, np.nan, -4.0, -1e9, -np.inf])) == 1e12
    assert distance(reference, np.array([0.0, 2.0, -4.0, -1e9, 0.0])) == 1e12
