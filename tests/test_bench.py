from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_bundle import make_bundle, make_samples, part_of

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.errors import PerformanceError, UsageError
from mer_export.exporters import export_variant
from runtimes.backends.way import Way, find_ways
from runtimes.speed import bench, regression
from runtimes.speed.start_up import ColdStart, cold_start
from runtimes.speed.timing import Clock, Deadline, Turns, interleave, ratio, warm_up


@pytest.fixture(scope="module")
def bundle(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of both buckets as TorchScript."""
    return part_of(exported, tmp_path_factory.mktemp("bench") / "bundle", ("torchscript", 4), ("torchscript", 8))


@pytest.fixture(scope="module")
def report(bundle: Bundle) -> bench.BenchReport:
    return bench.run_bench(bundle, make_samples(20), batches=(1, 3), rounds=3, cold=False)


def test_candidates_that_memory_cannot_hold_together_are_timed_in_groups_beside_eager(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[list[str]] = []
    original = bench._interleaved

    def watched(bundle: Bundle, group: list[Way], *rest: object) -> list[bench.Row]:
        opened.append([c.name for c in group])
        return original(bundle, group, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "_interleaved", watched)
    monkeypatch.setattr(bench.machine, "available_bytes", lambda: 1)
    found = bench.run_bench(bundle, make_samples(20), batches=(1,), rounds=2, cold=False)
    assert all(len(group) == 1 for group in opened)
    for case in found.cases:
        names = [row.name for row in case.rows]
        assert names.count(bench.BASE) == 1
        assert len(set(names)) == len(names) > 1


class Watch:
    """A clock that stands still but for what calls and pauses take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(lambda: self.now, lambda: self.now, self.pass_by)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_a_slower_call_gets_a_ratio_below_one() -> None:
    watch = Watch()
    calls = {"base": lambda: watch.pass_by(0.002), "slow": lambda: watch.pass_by(0.008)}
    turns = interleave(calls, rounds=5, clock=watch.clock)
    found = ratio(turns["base"], turns["slow"])
    assert (found.q25, found.median, found.q75) == pytest.approx((0.25, 0.25, 0.25))
    assert ratio(turns["base"], turns["base"]).median == 1


def test_every_round_times_every_candidate_in_changing_order() -> None:
    watch, seen = Watch(), []
    calls = {n: lambda n=n: (seen.append(n), watch.pass_by(0.03)) for n in "ab"}
    interleave(calls, rounds=6, clock=watch.clock)
    assert seen.count("a") == seen.count("b")
    order = "".join(seen)
    assert "aabb" in order
    assert "bbaa" in order


def test_the_pause_before_a_turn_is_not_timed() -> None:
    watch = Watch()
    turns = interleave({"a": lambda: watch.pass_by(0.001)}, rounds=2, pause=5.0, clock=watch.clock)
    assert turns["a"].latency().longest == pytest.approx(1.0)
    assert watch.now > 10


def test_no_round_begins_that_would_end_past_the_deadline_and_the_first_always_does() -> None:
    for seconds, rounds in ((0.0, 1), (2.5, 1), (3.5, 2)):
        watch = Watch()
        until = Deadline(seconds, watch.clock)
        turns = interleave({"a": lambda w=watch: w.pass_by(1.0)}, 5, pause=0.0, clock=watch.clock, until=until)
        assert len(turns["a"].wall) == rounds
        assert until.text == "at most 0 s left"


def test_what_ran_already_runs_for_its_turns_alone() -> None:
    watch, seen = Watch(), []
    calls = {n: lambda n=n: (seen.append(n), watch.pass_by(1.0)) for n in "ab"}
    interleave(calls, rounds=1, clock=watch.clock, ran={"a": 1.0})
    assert sorted(seen) == ["a", "b", "b"]


def test_warm_up_stops_when_times_are_stable_and_says_when_they_are_not() -> None:
    watch, calls = Watch(), iter(range(100))
    assert warm_up(lambda: watch.pass_by(0.002), clock=watch.clock).stable
    growing = warm_up(lambda: watch.pass_by(0.001 * (1 + next(calls))), most=9, clock=watch.clock)
    assert (growing.calls, growing.stable) == (9, False)
    slow = warm_up(lambda: watch.pass_by(3.0), clock=watch.clock)
    assert (slow.calls, slow.stable) == (2, False)


def test_percentiles_are_milliseconds_of_all_calls() -> None:
    latency = Turns(wall=[[0.001, 0.002], [0.003]], cpu=[[0.001, 0.001], [0.001]]).latency()
    assert (latency.calls, latency.p50, latency.longest, latency.cpu_p50) == (3, 2.0, 3.0, 1.0)


def test_every_case_holds_eager_and_the_variants_of_its_bucket(report: bench.BenchReport) -> None:
    assert [(c.lengths["utterances"], c.batch) for c in report.cases] == [(4, 1), (4, 3), (8, 1), (8, 3)]
    for case in report.cases:
        names = [r.name for r in case.rows]
        assert names[0] == bench.BASE
        assert any(f"utterances{case.lengths['utterances']}-" in n for n in names)
        assert case.rows[0].ratio.median == 1
        assert all(r.latency.p50 <= r.latency.p90 <= r.latency.longest for r in case.rows)


def test_items_are_those_that_are_routed_to_the_bucket(report: bench.BenchReport) -> None:
    lengths = {c.lengths["utterances"]: c.real_lengths["utterances"] for c in report.cases if c.batch == 3}
    assert all(1 <= n <= 4 for n in lengths[4])
    assert all(5 <= n <= 8 for n in lengths[8])


def test_what_really_ran_is_in_every_result(report: bench.BenchReport) -> None:
    assert report.machine["cores"] >= 1
    assert report.machine["versions"]["numpy"]
    assert all(r.info["threads"] == 1 for c in report.cases for r in c.rows)
    assert all(reason for _, reason in report.not_run)


def test_random_inputs_replace_missing_data(bundle: Bundle) -> None:
    found = bench.run_bench(bundle, None, batches=(2,), rounds=3, cold=False)
    assert found.inputs.startswith("random")
    assert len(found.cases) == 2


def test_data_that_fits_no_bucket_is_a_usage_error(tmp_path: Path) -> None:
    short = make_bundle(tmp_path / "short")
    export_variant(short, "torchscript", Bucket(utterances=1))
    with pytest.raises(UsageError, match="no sample fits"):
        bench.run_bench(short, make_samples(8)[4:], rounds=3, cold=False)


def test_a_cold_start_is_measured_in_a_process_of_its_own(
    bundle: Bundle, strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runs our modules, whatever lies around."""
    monkeypatch.chdir(strange)
    monkeypatch.setenv("PYTHONPATH", ".")
    candidate = next(c for c in find_ways(bundle, 1) if c.runtime == "torchscript")
    found = cold_start(bundle.root, candidate)
    assert isinstance(found, ColdStart), found
    assert found.load_s > 0
    assert 20 < found.peak_mib < 4000


def test_the_report_survives_json_and_lands_in_the_bundle(bundle: Bundle, report: bench.BenchReport) -> None:
    report.save(bundle)
    opened = Bundle.open(bundle.root)
    again = bench.BenchReport.model_validate(json.loads(opened.path("reports/bench.json").read_text()))
    assert again == report
    assert "| torchscript |" in opened.path("reports/bench.md").read_text()


def slowed(report: bench.BenchReport, factor: float) -> bench.BenchReport:
    """The same report, its last candidate `factor` times as fast as it was."""
    changed = report.model_copy(deep=True)
    row = changed.cases[-1].rows[1]
    row.ratio = row.ratio.model_copy(update={"median": factor * row.ratio.median})
    return changed


def test_a_ratio_that_fell_past_the_tolerance_is_named_with_both_ratios(report: bench.BenchReport) -> None:
    row = report.cases[-1].rows[1]
    found = regression.compare(slowed(report, 0.8), report, 0.1, "old.json")
    with pytest.raises(PerformanceError) as caught:
        regression.require(found)
    assert caught.value.exit_code == 4
    words = str(caught.value)
    assert row.name in words
    assert report.cases[-1].name in words
    assert f"{0.8 * row.ratio.median:.2f} x eager, {row.ratio.median:.2f} x in old.json" in words
    for factor, tolerance in ((0.8, 0.25), (1.5, 0.0), (1.0, 0.0)):
        regression.require(regression.compare(slowed(report, factor), report, tolerance, "old.json"))


def test_rows_that_one_report_lacks_are_said_and_not_failed(report: bench.BenchReport) -> None:
    fewer = report.model_copy(update={"cases": report.cases[:-1]})
    for now, before, part in ((fewer, report, "Only in the baseline"), (report, fewer, "Not in the baseline")):
        found = regression.compare(now, before, 0.1, "old.json")
        regression.require(found)
        assert found.only_before or found.only_now
        assert part in regression.markdown(found)
    none = report.model_copy(update={"cases": []})
    for now, before in ((none, report), (report, none)):
        with pytest.raises(PerformanceError, match=r"no candidate and case of old.json was measured now.* none"):
            regression.require(regression.compare(now, before, 0.1, "old.json"))


def test_a_baseline_that_cannot_be_compared_is_refused(report: bench.BenchReport, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(report.model_dump_json())
    assert regression.read_baseline(path, "cmerc", 1) == report
    for system, threads, words in (("emt", 1, "is of system cmerc"), ("cmerc", 2, "pass --threads 1")):
        with pytest.raises(UsageError, match=words):
            regression.read_baseline(path, system, threads)
    path.write_text("{}")
    with pytest.raises(UsageError, match="is not a report of mer bench"):
        regression.read_baseline(path, "cmerc", 1)
    with pytest.raises(UsageError, match="cannot be read"):
        regression.read_baseline(tmp_path / "nothing", "cmerc", 1)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0)])
def test_a_tolerance_is_a_share(text: str, value: float) -> None:
    assert regression.parse_tolerance(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["ten", "-1%", "100%", "nan", ""])
def test_a_tolerance_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a share"):
        regression.parse_tolerance(text)
