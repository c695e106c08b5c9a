from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_bundle import make_bundle, make_samples, part_of, reweigh

from mer_export.agreement.answers import Compared
from mer_export.agreement.compare import compare
from mer_export.agreement.metrics import metric_differences
from mer_export.agreement.policy import Policy, gravest
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.cuda import find_gpu
from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError, ParityError, UsageError
from mer_export.exporters import export_variant
from mer_export.task import Task
from runtimes.backends.session import Session, SessionOptions
from runtimes.backends.way import Way, find_ways, only
from runtimes.parity import run as parity
from runtimes.parity.probes import probes

TASK = Task(labels=("neutral", "joy", "anger"))


@pytest.fixture(scope="module")
def bundle(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of both buckets as TorchScript."""
    return part_of(exported, tmp_path_factory.mktemp("parity") / "bundle", ("torchscript", 4), ("torchscript", 8))


def runnable(bundle: Bundle, runtime: str) -> list[Way]:
    return [c for c in find_ways(bundle) if c.why_not is None and c.runtime == runtime]


class Tampered(Way, frozen=True):
    """A real way to run whose outputs are changed afterwards."""

    change: Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray] = lambda out, _: out

    def open(self, bundle: Bundle) -> Session:
        session = super().open(bundle)
        run = session.run
        session.run = lambda arrays: {"log_prob": self.change(run(arrays)["log_prob"], arrays)}  # type: ignore[method-assign]
        return session


def tampered(bundle: Bundle, change: Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]) -> list[Way]:
    way = runnable(bundle, "torchscript")[-1]
    return [Tampered(**dict(way), change=change)]


def scored(scores: list[list[float]], labels: list[int], name: str = "d") -> tuple[Sample, dict[str, np.ndarray]]:
    units = tuple(f"{name}/{i}" for i in range(len(scores)))
    return Sample(name, {}, units, np.array(labels)), {"log_prob": np.array(scores, dtype=np.float32)}


def test_every_variant_equals_eager_and_parity_passes(bundle: Bundle) -> None:
    report = parity.run_parity(bundle, make_samples())
    assert report.verdict == "pass"
    parity.require(report)
    assert {c.variant for c in report.ran} == {None, *(v.name for v in bundle.manifest.variants)}
    for candidate in report.ran:
        assert candidate.comparison is not None
        assert candidate.comparison.flips == 0
        assert candidate.comparison.outputs[0].max_abs <= 1e-5
        assert all(i.used <= 1 and i.flips == 0 for i in candidate.invariances)


def test_every_format_on_every_runtime_of_this_machine_passes(exported: Bundle) -> None:
    report = parity.run_parity(exported, make_samples())
    assert [c.name for c in report.candidates if c.verdict == "fail"] == []
    ran = {c.runtime for c in report.ran}
    assert {"torch", "torchscript", "exported_program"} <= ran
    full = [c for c in report.ran if c.precision == "fp32"]
    assert all(c.comparison and c.comparison.flips == 0 for c in full)
    assert all(c.comparison and c.comparison.outputs[0].max_abs <= 1e-5 for c in full)


def test_the_same_sample_is_run_alone_batched_reordered_and_in_every_bucket(bundle: Bundle) -> None:
    report = parity.run_parity(bundle, make_samples())
    names = {c.name: {i.name for i in c.invariances} for c in report.ran}
    assert {"in a batch", "in a batch, other order", "padded to every bucket"} <= names["torch: eager"]
    short = next(n for n in names if "utterances4" in n)
    assert {"in a batch", "garbage in padded places", "another bucket"} <= names[short]


def test_samples_longer_than_a_bucket_are_counted_not_hidden(bundle: Bundle) -> None:
    report = parity.run_parity(bundle, make_samples(8))
    by_bucket = {c.lengths["utterances"]: c.too_long for c in report.ran if c.lengths}
    assert by_bucket == {4: 4, 8: 0}


def test_probes_cover_one_unit_full_buckets_and_every_missing_modality(bundle: Bundle) -> None:
    contract = bundle.manifest.contract
    made = probes(make_samples(4), contract, contract.buckets)
    assert {s.lengths(contract)["utterances"] for s in made} >= {1, 4, 8}
    assert {s.modalities(contract) for s in made} == {
        ("text", "audio", "vision"),
        ("text", "audio"),
        ("text", "vision"),
        ("audio", "vision"),
        ("text",),
        ("audio",),
        ("vision",),
    }
    assert all(s.labels is None for s in made)
    assert all(len(s.units) == s.lengths(contract)["utterances"] for s in made)


def test_a_small_error_past_the_tolerance_fails_with_exit_code_3(bundle: Bundle) -> None:
    report = parity.run_parity(bundle, make_samples(), candidates=tampered(bundle, lambda out, _: out + 1e-3))
    assert report.verdict == "fail"
    with pytest.raises(ParityError, match=r"log_prob is off by up to 1\.0e-03") as caught:
        parity.require(report)
    assert caught.value.exit_code == 3


def test_an_override_for_one_output_is_obeyed(bundle: Bundle) -> None:
    wrong = tampered(bundle, lambda out, _: out + 1e-3)
    assert parity.run_parity(bundle, make_samples(), Policy.parse(["log_prob:1e-2"]), wrong).verdict == "pass"
    assert parity.run_parity(bundle, make_samples(), Policy.parse(["log_prob:1.5e-3"]), wrong).verdict == "warn"
    with pytest.raises(UsageError, match="no such output"):
        parity.run_parity(bundle, make_samples(), Policy.parse(["logits:1e-2"]), wrong)


def test_nan_fails_whatever_the_tolerance(bundle: Bundle) -> None:
    def poison(out: np.ndarray, _: dict[str, np.ndarray]) -> np.ndarray:
        out = out.copy()
        out[0, 0, 0] = np.nan
        return out

    report = parity.run_parity(bundle, make_samples(), Policy.parse(["1000"]), tampered(bundle, poison))
    assert report.verdict == "fail"
    assert "NaN" in report.candidates[0].reasons[0]


def test_an_answer_that_depends_on_its_neighbours_fails(bundle: Bundle) -> None:
    report = parity.run_parity(
        bundle, make_samples(), candidates=tampered(bundle, lambda out, _: out + 1e-3 * (len(out) > 1))
    )
    assert report.verdict == "fail"
    assert any(r.startswith("in a batch") for r in report.candidates[0].reasons)


def test_an_answer_that_depends_on_padding_fails(bundle: Bundle) -> None:
    report = parity.run_parity(
        bundle,
        make_samples(),
        candidates=tampered(bundle, lambda out, a: out + 1e-4 * np.abs(a["audio"][:, -1:]).max()),
    )
    assert any(r.startswith("garbage in padded places") for r in report.candidates[0].reasons)


def test_a_flip_names_the_unit_the_labels_and_the_reference_margin() -> None:
    sample, reference = scored([[-0.1, -3.0, -4.0], [-0.70, -0.71, -4.0]], labels=[0, 0])
    _, candidate = scored([[-0.1, -3.0, -4.0], [-0.71, -0.70, -4.0]], labels=[0, 0])
    found = compare([Compared(sample, reference, candidate, {})], TASK, Policy(), "fp32")
    assert found.flips == 1
    flip = found.listed_flips[0]
    assert (flip.unit, flip.reference, flip.candidate, flip.label) == ("d/1", "neutral", "joy", "neutral")
    assert flip.margin == pytest.approx(0.01, abs=1e-6)
    assert flip.noise
    assert found.flip_matrix == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_metric_differences_come_with_an_interval_over_whole_dialogues() -> None:
    random = np.random.default_rng(0)
    items = []
    for i in range(40):
        labels = random.integers(0, 3, 6)
        right = np.eye(3, dtype=np.float32)[labels]
        wrong = right.copy()
        if i % 4 == 0:
            wrong[0] = np.roll(wrong[0], 1)
        sample = Sample(f"d{i}", {}, tuple(f"d{i}/{k}" for k in range(6)), labels)
        items.append(Compared(sample, {"log_prob": right}, {"log_prob": wrong}, {}))
    found = {m.metric: m for m in metric_differences(items, TASK)}["accuracy"]
    assert found.reference == 100
    assert found.difference == pytest.approx(-100 * 10 / 240)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high < 0


def test_identical_decisions_have_an_interval_of_exactly_zero() -> None:
    sample, scores = scored([[-0.1, -3.0, -4.0]], labels=[0])
    found = metric_differences([Compared(sample, scores, scores, {})], TASK)
    assert all((m.difference, m.low, m.high) == (0, 0, 0) for m in found)


def test_variants_of_other_weights_are_found_and_named(tmp_path: Path) -> None:
    stale = make_bundle(tmp_path / "bundle")
    export_variant(stale, "torchscript", Bucket(utterances=8))
    reweigh(stale, seed=7)
    export_variant(stale, "torchscript", Bucket(utterances=4))
    report = parity.run_parity(stale, make_samples())
    verdicts = {c.lengths["utterances"]: c for c in report.ran if c.lengths}
    assert verdicts[4].verdict == "pass"
    assert verdicts[8].verdict == "fail"
    assert any("other weights" in r for r in verdicts[8].reasons)


def test_what_cannot_run_is_listed_with_its_reason_and_fails_only_when_asked(bundle: Bundle) -> None:
    able = runnable(bundle, "torchscript")
    unable = [able[0].model_copy(update={"why_not": "this engine needs a GPU"})]
    report = parity.run_parity(bundle, make_samples(), candidates=[able[1], *unable])
    assert [c.verdict for c in report.candidates] == ["pass", "not run"]
    assert report.candidates[1].reasons == ["this engine needs a GPU"]
    parity.require(report)
    with pytest.raises(ParityError, match="needs a GPU"):
        parity.require(report, strict=True)


class Short(Way, frozen=True):
    """A real way to run whose bucket holds nothing."""

    def open(self, bundle: Bundle) -> Session:
        session = super().open(bundle)
        session.bucket = Bucket(utterances=0)
        return session


def test_what_was_asked_nothing_has_not_passed(bundle: Bundle) -> None:
    way = Short(**dict(runnable(bundle, "torchscript")[0]))
    report = parity.run_parity(bundle, make_samples(1), candidates=[way])
    (found,) = report.candidates
    assert (found.verdict, found.reasons) == (
        "not run",
        ["no sample and no probe fits its bucket: export a longer one"],
    )
    assert found.reasons[0] in report.page()
    with pytest.raises(ParityError, match="no candidate could run"):
        parity.require(report)


def test_of_a_report_by_another_policy_only_what_failed_is_kept(bundle: Bundle) -> None:
    near, far = runnable(bundle, "torchscript")
    ways = [
        Tampered(**dict(near), change=lambda out, _: out + np.float32(0.01)),
        Tampered(**dict(far), change=lambda out, _: -out),
    ]
    earlier = parity.run_parity(bundle, make_samples(2), Policy.parse(["1"]), candidates=ways)
    assert [c.verdict for c in earlier.candidates] == ["pass", "fail"]
    report = parity.run_parity(bundle, make_samples(2), candidates=runnable(bundle, "torch"))
    beside = report.beside(earlier, bundle)
    assert [c.variant for c in beside.candidates if c.earlier] == [far.variant]
    assert (report.verdict, beside.verdict, report.changed, beside.changed) == ("pass", "fail", 0, earlier.flips)
    alike = report.beside(earlier.model_copy(update={"policy": report.policy}), bundle)
    assert [c.variant for c in alike.candidates if c.earlier] == [near.variant, far.variant]


def test_a_runtime_that_breaks_is_a_failure_of_that_candidate_only(bundle: Bundle) -> None:
    def explode(out: np.ndarray, _: dict[str, np.ndarray]) -> np.ndarray:
        raise RuntimeError("kernel not found")

    report = parity.run_parity(
        bundle, make_samples(), candidates=[*tampered(bundle, explode), *runnable(bundle, "torch")]
    )
    assert [c.verdict for c in report.candidates] == ["fail", "pass"]
    assert "kernel not found" in report.candidates[0].reasons[0]


def test_the_report_survives_json_and_lands_in_the_bundle(bundle: Bundle) -> None:
    report = parity.run_parity(bundle, make_samples(), source="ten dialogues")
    report.save(bundle)
    opened = Bundle.open(bundle.root)
    again = parity.ParityReport.model_validate(json.loads(opened.path("reports/parity.json").read_text()))
    assert again == report
    text = opened.path("reports/parity.md").read_text()
    assert text.startswith("# Parity: pass")
    assert "ten dialogues" in text


def test_no_samples_is_a_usage_error(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="at least one sample"):
        parity.run_parity(bundle, [])


@pytest.mark.parametrize("text", ["log_prob:", "log_prob:x", ":1e-4", "-1", "log_prob:inf", "", "int8:a:b:1"])
def test_a_malformed_tolerance_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--atol"):
        Policy.parse([text])


def test_a_tolerance_may_be_for_one_precision_or_output() -> None:
    policy = Policy.parse(["1e-3", "log_prob:1e-4", "int8:0.5", "fp32:log_prob:1e-6"], ["bf16:0.25"])
    policy.check_names(["log_prob", "score"])
    assert policy.tolerance("fp32", "log_prob") == (1e-6, 1e-6)
    assert policy.tolerance("fp32", "score")[0] == 1e-3
    assert policy.tolerance("fp16", "log_prob")[0] == 1e-4
    assert policy.tolerance("int8", "log_prob")[0] == 0.5
    assert policy.tolerance("bf16", "score") == (1e-3, 0.25)
    with pytest.raises(UsageError, match="'fp8': no such output or precision"):
        Policy.parse(["fp8:0.1"]).check_names(["log_prob"])


def test_the_gravest_verdict_wins() -> None:
    assert gravest(["pass", "not run", "warn"]) == "warn"
    assert gravest(["fail", "warn"]) == "fail"
    assert gravest([]) == "not run"


class OnGpu(Tampered, frozen=True):
    """A way that says it is on a GPU, computed on the CPU."""

    def open(self, bundle: Bundle) -> Session:
        return Tampered(**dict(self) | {"options": SessionOptions()}).open(bundle)


def test_what_a_gpu_rounds_is_held_against_float32_on_the_cpu_by_the_rule_of_its_precision(bundle: Bundle) -> None:
    within = {"tf32": 5e-3, "fp16": 1e-2, "bf16": 4e-2}
    ways = [
        OnGpu(
            backend="torch",
            options=SessionOptions(device="cuda", reduced=reduced),
            precision=reduced,
            change=lambda out, _, by=by: out + np.float32(by),
        )
        for reduced, by in [*within.items(), ("tf32", 0.05)]
    ]
    report = parity.run_parity(bundle, make_samples(1), candidates=ways)
    assert (report.reference["device"], report.reference["precision"]) == ("cpu", "fp32")
    assert [c.runtime for c in report.candidates] == [f"torch {p} cuda" for p in (*within, "tf32")]
    assert [c.verdict == "fail" for c in report.candidates] == [False, False, False, True]


def test_a_part_of_the_candidates_is_asked_by_device_and_precision(bundle: Bundle) -> None:
    ways = find_ways(bundle)
    assert {w.options.kind for w in only(ways, "cpu")} == {"cpu"}
    assert {w.precision for w in only(ways, None, "fp32")} == {"fp32"}
    assert {w.options.device for w in only(ways, "cuda:1")} == {"cuda:1"}
    with pytest.raises(UsageError, match=r"nothing here runs in int8 on cpu, there are \['fp32'\]: export it first"):
        only(ways, "cpu", "int8")
    if not find_gpu():
        with pytest.raises(NotAvailableError, match=r"nothing runs in tf32 on cuda: torch .* finds no CUDA device"):
            only(ways, "cuda", "tf32")
