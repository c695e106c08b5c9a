"""One judge: what counts as the same answer, at export, in the gate, in parity and in benchmarks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import make_samples, part_of

from benchmarks import peers
from mer_export.agreement.answers import Compared
from mer_export.agreement.calibration import calibration_drift
from mer_export.agreement.compare import Comparison, compare
from mer_export.agreement.error import output_error
from mer_export.agreement.flips import Noise, find_flips
from mer_export.agreement.policy import PROOF, RULES, Policy
from mer_export.agreement.verdict import findings
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.samples import Sample
from mer_export.exporters import export_variant
from mer_export.task import Task
from runtimes.parity.invariance import difference
from runtimes.parity.report import ParityReport, verdict_line
from runtimes.parity.run import require, run_parity

TASK = Task(labels=("neutral", "joy"))
SCORE = Task(kind="regression", output="score", labels=("low", "high"), limits=(-3, 3), edges=(0.0,), scale="mosi")
Scores = list[list[float]] | np.ndarray


def answer(
    before: Scores, after: Scores, labels: list[Any] | None = None, real: bool = True, task: Task = TASK
) -> Compared:
    a, b = np.asarray(before, dtype=np.float32), np.asarray(after, dtype=np.float32)
    truth = None if labels is None else np.asarray(labels)
    sample = Sample("d", {}, tuple(f"d/{i}" for i in range(len(a))), truth)
    return Compared(sample, {task.output: a}, {task.output: b}, {"source": "all"}, real)


def said(
    found: Comparison, precision: str = "int8", task: Task = TASK, policy: Policy | None = None
) -> list[tuple[str, str]]:
    return [(verdict, text) for verdict, text in findings(found, precision, task, policy or Policy())]


def judged(items: list[Compared], precision: str = "int8", task: Task = TASK) -> tuple[Comparison, list[str]]:
    found = compare(items, task, Policy(), precision)
    return found, [verdict for verdict, _ in said(found, precision, task)]


def dialogue(units: int, margin: float, moved: float, labels: bool = False) -> Compared:
    """Units that lean to `neutral` by `margin`, and what a candidate makes of it that moves both scores by `moved`."""
    before = np.tile([0.0, -margin], (units, 1))
    return answer(before, before + np.array([-moved, moved]), [0] * units if labels else None)


def test_a_label_that_changes_within_noise_is_reported_and_fails_nothing() -> None:
    steady, ties = dialogue(60, margin=2.0, moved=0.02), dialogue(40, margin=0.03, moved=0.02)
    found, verdicts = judged([steady, ties])
    assert (found.flips, found.flips_beyond_noise, found.units) == (40, 0, 100)
    assert verdicts == ["warn"]
    assert said(found)[0][1] == "40 of 100 labels change, all within numeric noise"
    assert all(f.noise for f in found.listed_flips)


def test_labels_that_change_beyond_noise_count_against_the_allowed_number() -> None:
    steady = dialogue(98, margin=2.0, moved=0.02)
    for clear, verdict in ((2, "warn"), (3, "fail")):
        found, verdicts = judged([steady, dialogue(clear, margin=0.2, moved=0.15)])
        assert found.flips_beyond_noise == clear
        assert verdicts == [verdict]
    assert said(found) == [("fail", "3 of 101 labels change, allowed are 2")]


def test_no_unit_excuses_its_flip_by_how_far_it_is_itself_off() -> None:
    """A label flips only where its unit moves by half of the margin: the largest difference would excuse every flip."""
    found, _ = judged([dialogue(9, margin=2.0, moved=0.01), dialogue(1, margin=0.5, moved=0.26)])
    assert found.flips_beyond_noise == 1
    assert found.outputs[0].max_abs * 2 > found.listed_flips[0].margin


def test_noise_is_never_less_than_what_fp32_may_differ_by() -> None:
    scores = np.float32([[-20.0, -20.00002]])
    quiet = Noise([answer(scores, scores)], TASK)
    assert quiet.typical == 0
    assert quiet.margins(scores) == pytest.approx(2 * (1e-5 + 1e-6 * 20), rel=1e-3)
    found, verdicts = judged([answer(scores, scores[:, ::-1])], "fp32")
    assert (found.flips, found.flips_beyond_noise) == (1, 0)
    assert "fail" not in verdicts


def test_a_drop_that_comes_from_noise_alone_does_not_fail_where_none_is_allowed() -> None:
    ties = [dialogue(1, margin=4e-6, moved=3e-6, labels=True) for _ in range(8)]
    found, verdicts = judged(ties, "fp32")
    assert next(m for m in found.metrics if m.metric == TASK.headline).high == -100
    assert verdicts == ["warn", "warn"]
    assert judged([dialogue(1, margin=4e-3, moved=3e-3, labels=True) for _ in range(8)], "fp32")[1].count("fail") >= 1


def test_a_drop_of_what_one_allowed_label_is_worth_is_allowed() -> None:
    for precision in ("fp16", "bf16", "int8"):
        assert RULES[precision].drop_allowed(50) == 4.0
        assert RULES[precision].drop_allowed(10_000) == RULES[precision].metric_drop
    assert RULES["fp32"].drop_allowed(50) == 0.0


def test_calibration_of_both_sides_is_measured_as_published() -> None:
    before = np.log([[0.8, 0.2], [0.6, 0.4]])
    drift = calibration_drift([answer(before, np.log([[0.5, 0.5], [0.5, 0.5]]), [0, 1])], TASK)
    assert drift is not None
    assert drift.reference.ece == pytest.approx(40)
    assert drift.reference.brier == pytest.approx(0.4)
    assert drift.reference.entropy == pytest.approx(0.84644, abs=1e-5)
    assert (drift.candidate.ece, drift.candidate.brier, drift.candidate.entropy) == pytest.approx((0, 0.5, 1))
    unlabelled = calibration_drift([answer(before, before)], TASK)
    assert unlabelled is not None
    assert (unlabelled.reference.ece, unlabelled.reference.brier) == (None, None)
    assert calibration_drift([answer([[0.4]], [[0.4]], task=SCORE)], SCORE) is None


def test_with_several_labels_each_is_a_question_of_yes_and_no() -> None:
    task = Task(kind="multilabel", labels=("happy", "sad"))
    odds = np.log([[4.0, 0.25], [1.5, 1.5]])
    drift = calibration_drift([answer(odds, odds, [[1.0, 0.0], [1.0, 0.0]], task=task)], task)
    assert drift is not None
    assert drift.reference.brier == pytest.approx((2 * 0.08 + 0.32 + 0.72) / 4)
    assert drift.reference.ece == pytest.approx(100 * (2 * 0.2 + abs(2 * 0.6 - 1)) / 4)


def test_a_candidate_with_one_answer_for_everything_is_said_to_have_it() -> None:
    before = np.where(np.arange(40)[:, None] % 2, [[0.0, -1.0]], [[-1.0, 0.0]])
    found = compare([answer(before, np.tile([0.0, -1.0], (40, 1)))], TASK, Policy(), "int8")
    assert ("warn", "every one of 40 units is neutral, the reference tells them apart") in said(found)
    same = compare([answer(before, before)], TASK, Policy(), "int8")
    assert same.calibration is not None
    assert same.calibration.always is None
    assert not said(same)


def test_signs_that_change_within_noise_fail_nothing() -> None:
    steady, near = np.full((50, 1), 2.0), np.full((50, 1), 0.004)
    found, verdicts = judged([answer(np.r_[steady, near], np.r_[steady, near] - 0.005, task=SCORE)], task=SCORE)
    assert (found.sign_flips, found.sign_flips_beyond_noise) == (50, 0)
    assert set(verdicts) == {"warn"}
    turned = answer(np.r_[steady, near + 0.2], np.r_[steady - 0.005, near - 0.05], task=SCORE)
    found, verdicts = judged([answer(steady, steady - 0.005, task=SCORE), turned], task=SCORE)
    assert found.sign_flips_beyond_noise == 50
    assert "fail" in verdicts


def test_what_was_made_up_is_judged_on_its_error_and_on_nothing_else() -> None:
    steady, probe = dialogue(10, margin=2.0, moved=0.01, labels=True), dialogue(10, margin=0.1, moved=0.1, labels=True)
    found, verdicts = judged([steady, replace(probe, real=False)])
    assert (found.samples, found.units, found.labelled, found.flips) == (1, 10, 10, 0)
    assert found.flip_matrix == [[10, 0], [0, 0]]
    assert [m.difference for m in found.metrics if m.metric == "accuracy"] == [0]
    assert (found.strata[0].units, found.strata[0].flips) == (20, 0)
    assert verdicts == []
    assert found.outputs[0].max_abs == pytest.approx(0.1, abs=1e-6)
    wrong, verdicts = judged([steady, replace(dialogue(10, margin=1.0, moved=1.0), real=False)])
    assert wrong.flips == 0
    assert verdicts == ["fail"]


def test_a_label_counts_once_however_often_its_unit_was_run() -> None:
    tie = dialogue(2, margin=0.2, moved=0.15)
    pairs = [tie, tie, replace(tie, candidate=tie.reference)]
    assert len(find_flips(pairs, TASK)) == 2
    assert difference("padded to every bucket", pairs, TASK, (0.3, 0.1)).flips == 2
    other = dialogue(2, margin=0.2, moved=0.15)
    assert len(find_flips([tie, other], TASK)) == 4, "another sample of the same name is another sample"


def test_an_output_much_smaller_than_the_tolerance_is_judged_by_its_size() -> None:
    small = answer([[0.01, -0.01]], [[0.02, -0.02]])
    found, verdicts = judged([small])
    assert verdicts == ["fail"]
    assert said(found)[0][1] == "log_prob is off by 100.0% of its size, allowed are 15%"
    assert findings(found, "int8", TASK, Policy.parse(["int8:0.5"])) == [], "a wider tolerance takes its place"
    assert Policy.parse(["int8:0.1"]).relative("int8", "log_prob") == RULES["int8"].relative


def test_an_element_is_judged_by_the_largest_score_of_its_unit() -> None:
    found = output_error("o", [np.float32([[-20.0, -1e-6]])], [np.float32([[-20.0, -3e-5]])], 1e-5, 1e-6)
    assert found.agrees
    assert not output_error("o", [np.float32([[-20.0], [-1e-6]])], [np.float32([[-20.0], [-3e-5]])], 1e-5, 1e-6).agrees


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_agrees(value: float) -> None:
    for reference in (0.0, value):
        found = output_error("o", [np.float32([[reference]])], [np.float32([[value]])], 1e9, 1e9)
        assert not found.agrees
        assert found.size == "1 values that are NaN or infinite"


def test_a_fresh_export_may_differ_ten_times_as_far_as_parity_lets_it() -> None:
    assert (PROOF.atol, PROOF.rtol) == pytest.approx((10 * RULES["fp32"].atol, 10 * RULES["fp32"].rtol))
    assert all(PROOF.atol < RULES[p].atol for p in ("fp16", "bf16", "int8"))


def test_benchmarks_ask_the_same_table() -> None:
    base = np.float32([[0.0, -1.0]])
    for way, precision in (("torch.compile", "fp32"), (peers.QUANTISED, "int8"), ("mer: OpenVINO bf16", "bf16")):
        error = peers._error(way, base + np.float32(0.01), base)
        assert error is not None
        assert (error.atol, error.rtol) == (RULES[precision].atol, RULES[precision].rtol)


def test_the_judge_needs_neither_torch_nor_a_runtime() -> None:
    code = (
        "import sys, mer_export.agreement.verdict; "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'runtimes'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


@pytest.fixture(scope="module")
def quantised(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An int8 export of two buckets that passed its gate."""
    pytest.importorskip("onnxruntime")
    bundle = part_of(exported, tmp_path_factory.mktemp("agreement") / "bundle", ("onnx", 4), ("onnx", 8))
    for length in (4, 8):
        export_variant(bundle, "onnx", Bucket(utterances=length), precision="int8", example=make_samples())
    with bundle.commit() as change:
        change.manifest.variants = [v for v in change.manifest.variants if v.precision == "int8"]
    return bundle


def turned(scores: np.ndarray, arrays: dict[str, np.ndarray], silent: bool) -> np.ndarray:
    """The two best scores of the last two units change places, in items without text if `silent`, else in others."""
    scores = scores.copy()
    for item in range(len(scores)):
        length = int(arrays["lengths"][item])
        if arrays["text"][item, :, :length].any() != silent:
            for unit in range(max(0, length - 2), length):
                first, second = np.argsort(-scores[item, unit])[:2]
                scores[item, unit, [first, second]] = scores[item, unit, [second, first]]
    return scores


def run_turned(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, silent: bool) -> ParityReport:
    from runtimes.backends.onnx_runtime import OnnxRuntimeSession

    run = OnnxRuntimeSession.run
    monkeypatch.setattr(
        OnnxRuntimeSession,
        "run",
        lambda self, arrays: {n: turned(v, arrays, silent) for n, v in run(self, arrays).items()},
    )
    # How much of its tolerance an error takes is not asked here.
    return run_parity(bundle, make_samples(), Policy(close=1.0), threads=1)


def test_near_ties_of_an_unlabelled_probe_do_not_fail_an_export_that_passed_its_gate(
    quantised: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_turned(quantised, monkeypatch, silent=True)
    assert [(c.verdict, c.reasons) for c in report.ran if c.precision == "int8"] == [("pass", [])] * 2
    assert report.flips == 0
    require(report)


def test_labels_of_the_data_that_change_are_told_once_for_all_buckets(
    quantised: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_turned(quantised, monkeypatch, silent=False)
    reduced = [c.comparison for c in report.ran if c.precision == "int8" and c.comparison]
    units = sum(min(2, len(s.units)) for s in make_samples())
    assert [c.flips for c in reduced][1] == units == report.flips
    assert sum(c.flips for c in reduced) > units
    kept = [c for c in report.candidates if c.verdict != "fail"]
    assert f"{units} of {report.units} labels change" in verdict_line(report.model_copy(update={"candidates": kept}))


def test_a_report_of_an_earlier_release_still_reads() -> None:
    report = ParityReport.load(Bundle.open(Path(__file__).parent / "data" / "bundles" / "cmerc"))
    assert report is not None
    assert report.flips is None
    assert report.changed == 0
    assert report.page().startswith("# Parity: ")
