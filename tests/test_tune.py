"""Choice by measurement: what is timed, what is chosen, and when nothing can be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import make_bundle, make_samples, other_bytes, part_of, randomise

from benchmarks.choice import judge
from mer_export import machine
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import BundleError, UsageError
from runtimes import BatchWorker
from runtimes.backends.session import SessionOptions
from runtimes.backends.way import Way, find_ways
from runtimes.parity.report import CandidateReport, ParityReport
from runtimes.parity.run import run_parity
from runtimes.pipeline import How, Reading
from runtimes.predict import machine_profile as profiles
from runtimes.predict.machine_profile import Entry, Goal, Limits, Profile, choose
from runtimes.predict.opening import open_predictor
from runtimes.predict.predictor import Predictor
from runtimes.predict.verdicts import failed
from runtimes.scale.command import Blocks, Spread
from runtimes.speed import settings as spread
from runtimes.speed import tune
from runtimes.speed.products import products, slower
from runtimes.speed.settings import first_look, near_best, settings_of, worth_widening
from runtimes.speed.timing import PAUSE, Clock, Deadline

HERE = SessionOptions()


PASSES = tuple(step._replace(rounds=1) for step in tune.PASSES[:3])
RATES = {"fp32": 100.0, "bf16": 200.0, "int8": 300.0}


@pytest.fixture(scope="module", autouse=True)
def _rates() -> Iterator[None]:
    """A processor that multiplies faster in every reduced precision, whatever this one does at the moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "products", lambda: RATES)
        yield


@pytest.fixture(scope="module")
def tuned(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both buckets as ONNX and the long one as TorchScript, and a profile of this machine."""
    root = tmp_path_factory.mktemp("tune") / "bundle"
    bundle = part_of(exported, root, ("onnx", 4), ("onnx", 8), ("torchscript", 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "parallel", lambda: [(1, 1), (1, 2)])
        patch.setattr(tune, "PASSES", PASSES)
        tune.run_tune(bundle, make_samples(16), batches=(1, 3)).save(bundle)
    return bundle.root


@pytest.fixture
def bundle(tuned: Path, tmp_path: Path) -> Bundle:
    """A copy to write to."""
    return Bundle.open(shutil.copytree(tuned, tmp_path / "bundle"))


def way(precision: str = "fp32", workers: int = 1, **options: int) -> Way:
    """In any bucket."""
    own = SessionOptions(**{"threads": 1} | options)
    return Way(backend="onnxruntime", format="onnx", precision=precision, options=own, workers=workers)


def in_bucket(way: Way, length: int) -> Way:
    return way.model_copy(update={"variant": f"v{length}", "bucket": Bucket(n=length)})


def profile_of(times: list[tuple[Way, float, float]]) -> Profile:
    """Ways with their milliseconds per call in a short and a long bucket, which get a third of the data and two."""
    entries = [
        Entry(way=in_bucket(w, n), sha256="", ms=ms, p90=1.2 * ms, share=share, rounds=3)
        for w, *both in times
        for n, ms, share in zip((4, 8), both, (1 / 3, 2 / 3), strict=True)
    ]
    return Profile(machine={"cpu": "a", "cores": 4}, weights_sha256="", source="", entries=entries, load_average=0)


milliseconds = st.floats(0.1, 50)
drawn = st.lists(
    st.tuples(
        st.builds(
            way,
            batch=st.sampled_from([1, 4, 16]),
            workers=st.sampled_from([1, 4]),
            threads=st.sampled_from([1, 4]),
            precision=st.sampled_from(["fp32", "int8"]),
        ),
        milliseconds,
        milliseconds,
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[0],
)


@settings(max_examples=200, deadline=None)
@given(times=drawn, budget=st.floats(0.2, 80))
def test_a_choice_is_never_a_tenth_slower_than_the_best_measured(
    times: list[tuple[Way, float, float]], budget: float
) -> None:
    """Per item over all data, worked out here by hand; within a budget among what keeps it."""
    found = profile_of(times)
    per_item = {s: (a + 2 * b) / 3 / s.options.batch / s.workers for s, a, b in times}
    assert per_item[choose(found, Goal("throughput")).way] <= 1.1 * min(per_item.values())
    fitting = [s for s, a, b in times if 1.2 * max(a, b) <= budget]
    if fitting:
        chosen = choose(found, Goal("budget", budget)).way
        assert chosen in fitting
        assert per_item[chosen] <= 1.1 * min(per_item[s] for s in fitting)
    else:
        with pytest.raises(UsageError, match="nothing answers within"):
            choose(found, Goal("budget", budget))
    single = {s: (a + 2 * b) / 3 for s, a, b in times if (s.options.batch, s.workers) == (1, 1)}
    if single:
        assert single[choose(found, Goal("latency")).way] <= 1.1 * min(single.values())
    if all(s.workers > 1 for s in per_item):
        with pytest.raises(UsageError, match="answers one call at a time"):
            choose(found, Goal("latency"))
    assert "- latency: " in found.page()
    assert "- throughput: " in found.page()


def test_limits_restrict_the_choice() -> None:
    fast, slow = way(precision="int8"), way(threads=2)
    found = profile_of([(fast, 1.0, 1.0), (slow, 5.0, 5.0)])
    assert choose(found, Goal("latency")).way == fast
    for limits in (Limits(precision="fp32"), Limits(threads=2)):
        assert choose(found, Goal("latency"), limits).way == slow
    with pytest.raises(UsageError, match="has precision fp16: export it, then run mer tune"):
        choose(found, Goal("latency"), Limits(precision="fp16"))


def test_a_way_that_does_not_answer_all_the_data_is_not_chosen() -> None:
    found = profile_of([(way(), 5.0, 5.0), (way(precision="int8"), 1.0, 1.0)])
    found.entries.pop()
    assert choose(found, Goal("throughput")).way == way()


def test_what_may_turn_out_best_is_timed_again() -> None:
    best, doubled, slow = way(), way(threads=2), way(threads=4)
    many, few = way(batch=16, workers=2), way(batch=4, workers=2)
    found = profile_of([(best, 1.0, 1.0), (doubled, 2.0, 2.0), (slow, 2.5, 2.5), (many, 8.0, 8.0), (few, 8.0, 8.0)])
    assert near_best(found, 2.2) == {best, doubled, many}
    reduced = profile_of([(best, 1.0, 1.0), (way(precision="int8", threads=4), 9.0, 9.0)])
    assert len(near_best(reduced, 2.2)) == 2, "each precision has a best of its own"


def test_a_first_look_is_at_both_ends_of_the_batches_and_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "parallel", lambda: [(1, 1), (2, 1), (4, 1), (1, 4)])
    looked = first_look(list(settings_of(way(), (1, 4, 16))))
    assert {(w.options.threads, w.workers, w.options.batch) for w in looked} == {(1, 1, 1), (1, 1, 16), (4, 1, 1)}


@pytest.mark.parametrize(("one", "sixteen", "tried"), [(30.0, 450.0, False), (30.0, 360.0, True), (3.0, 45.0, True)])
def test_larger_batches_of_long_calls_that_gain_nothing_at_a_first_look_are_left_out(
    one: float, sixteen: float, tried: bool
) -> None:
    sizes = [way(batch=b, threads=t) for t in (1, 4) for b in (1, 4, 16)]
    looked = profile_of([(sizes[0], one, one), (sizes[2], sixteen, sixteen)])
    assert worth_widening(looked, sizes) == (sizes if tried else [sizes[0], sizes[3]])


def test_without_time_the_best_has_a_first_look_in_every_bucket_and_the_rest_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "parallel", lambda: [(1, 1), (1, 2)])
    found = tune.run_tune(bundle, make_samples(16), batches=(1, 3), minutes=0)
    assert {e.rounds for e in found.entries} == {tune.PASSES[0].rounds}
    for precision in ("fp32", "int8"):
        assert choose(found, Goal("throughput"), Limits(precision=precision)).way.workers == 1
    every = {
        f"{way.variant}: {own.description}" for way in tune._ways(bundle, None) for own in settings_of(way, (1, 3))
    }
    timed = {f"{e.way.variant}: {e.way.description}" for e in found.entries}
    assert {name for name, why in found.not_run if "give more with mer tune --minutes" in why} == every - timed
    assert "give more with mer tune --minutes" in found.page()


OPENING, CALL = 8.0, 4.0
"""Seconds that a session of a large network takes."""


class Slow:
    """A session that takes no time but a clock's."""

    concurrent = True

    def __init__(self, passes: Callable[[float], None], seconds: float):
        self.passes, self.seconds = passes, seconds

    def run(self, arrays: Any) -> dict[str, np.ndarray]:
        self.passes(self.seconds)
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("minutes", [0.1, 1.0, 2.0, 30.0])
def test_the_time_bounds_openings_too_and_the_fastest_is_found_where_there_is_time_for_a_look_at_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    now, opened = [0.0], []

    def passes(seconds: float) -> None:
        now[0] += seconds

    def opening(way: Way, _: Bundle) -> Slow:
        passes(OPENING)
        opened.append(way)
        return Slow(passes, CALL / 4 if way.precision == "int8" else CALL)

    monkeypatch.setattr(Way, "open", opening)
    monkeypatch.setattr(spread, "parallel", lambda: [(1, 1), (2, 1), (1, 2)])
    clock = Clock(wall=lambda: now[0], cpu=lambda: now[0], sleep=passes)
    found = tune.run_tune(bundle, make_samples(16), batches=(1, 3), minutes=minutes, clock=clock)
    buckets = {e.way.bucket for e in found.entries}
    precisions = {e.way.precision for e in found.entries}
    # What it takes where there is no time: one of each precision in each bucket.
    least = len(buckets) * len(precisions)
    assert now[0] <= max(60 * minutes, least * (OPENING + CALL + PAUSE))
    assert len(opened) <= max(least, 60 * minutes / OPENING)
    assert buckets == set(bundle.manifest.contract.buckets)
    assert choose(found, Goal("latency")).way.precision == "int8"
    assert (minutes == 30.0) != any("give more with mer tune --minutes" in why for _, why in found.not_run)


def test_what_is_far_from_the_best_at_a_first_look_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "parallel", lambda: [(1, 1), (1, 2)])
    monkeypatch.setattr(tune, "PASSES", (PASSES[0], PASSES[1]._replace(near=1.0)))
    found = tune.run_tune(bundle, batches=(1,), precisions=("fp32",))
    best = {choose(found, Goal(kind)).way.backend for kind in ("latency", "throughput")}
    assert {e.way.backend for e in found.entries if e.way.workers == 2} <= best | {"openvino", "onnxruntime"}
    assert {why for name, why in found.not_run if "2 workers" in name} == {tune.FAR}


def test_large_data_are_looked_through_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, lengths = make_samples(8), Sample.lengths
    looked: list[str] = []

    def counted(sample: Sample, contract: Contract) -> dict[str, int]:
        looked.append(sample.id)
        return lengths(sample, contract)

    monkeypatch.setattr(Sample, "lengths", counted)
    tuning = tune.Tuning(bundle, samples, "", (1,), tune._ways(bundle, None), Deadline(1.0))
    for _ in range(3):
        assert tuning.profile().entries == []
        assert tuning.fitting(tuning.buckets[0])
    assert len(looked) <= 2 * len(samples)


def test_a_choice_is_judged_by_the_times_of_another_run() -> None:
    a, b, gone = way(), way(precision="int8"), way(threads=2)
    first = profile_of([(a, 2.0, 2.0), (b, 3.0, 3.0), (gone, 1.0, 1.0)])
    second = profile_of([(a, 5.0, 5.0), (b, 4.0, 4.0)])
    latency, throughput, budget = judge(first, second)
    assert latency == {
        "goal": "latency",
        "budget_ms": 0,
        "chosen": a.description,
        "best_again": b.description,
        "ms": pytest.approx(5.0),
        "slower": pytest.approx(0.25),
        "kept_budget": True,
    }
    assert throughput["slower"] == pytest.approx(0.25)
    assert budget["budget_ms"] == pytest.approx(2 * 1.2 * 2.0)
    assert (budget["chosen"], budget["kept_budget"]) == (a.description, False)


@pytest.mark.parametrize(
    ("text", "goal"),
    [("latency", Goal("latency")), ("budget=5ms", Goal("budget", 5.0)), ("budget=0.5s", Goal("budget", 500.0))],
)
def test_goals_are_read(text: str, goal: Goal) -> None:
    assert Goal.parse(text) == goal


@pytest.mark.parametrize("text", ["speed", "budget", "budget=5", "budget=0ms", "budget=-1ms", "budget=5 ms"])
def test_a_goal_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="it is latency, throughput or budget=5ms"):
        Goal.parse(text)


def test_everything_exported_is_timed_and_the_best_again(bundle: Bundle) -> None:
    found = profiles.own_profile(bundle)
    assert {e.way.backend for e in found.entries} >= {"onnxruntime", "torchscript"}
    assert {(e.way.options.batch, e.way.workers) for e in found.entries} == {(1, 1), (1, 2), (3, 1), (3, 2)}
    assert len(PASSES) in {e.rounds for e in found.entries}
    assert all(s.item_ms > 0 for s in profiles.scores(found))
    shares = [sum(e.share for e in found.entries if e.way.in_any_bucket == s.way) for s in profiles.scores(found)]
    assert shares == pytest.approx([1.0] * len(shares))
    assert "throughput: " in found.page()


@pytest.mark.parametrize("version", ["max", "limit_in_bytes"])
def test_free_memory_is_what_a_container_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    limit, used, parts, prefix = next(own for own in machine.LIMITS if own[0].endswith(version))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    whole = machine.available_bytes()
    said = f"{prefix}inactive_file 300\n{prefix}active_file 50\n{prefix}anon 4000\n"
    for name, content in ((limit, "10000\n"), (used, "5000\n"), (parts, said)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert machine.available_bytes() == 5350
    (tmp_path / limit).write_text("max\n" if version == "max" else "9223372036854771712\n")
    assert machine.available_bytes() == pytest.approx(whole, rel=0.2)


def test_memory_for_one_session_at_a_time_times_the_same_ways(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    original = tune.Tuning._time

    def watched(tuning: tune.Tuning, group: list[Way], *rest: Any) -> list[Any]:
        held.append(len(group))
        return original(tuning, group, *rest)

    monkeypatch.setattr(tune.Tuning, "_time", watched)
    monkeypatch.setattr(spread, "parallel", lambda: [(1, 1)])
    monkeypatch.setattr(tune, "PASSES", PASSES[:2])
    together = tune.run_tune(bundle, make_samples(16), batches=(1,), precisions=("fp32",))
    assert max(held) > 1
    held.clear()
    monkeypatch.setattr(machine, "available_bytes", lambda: 1)
    apart = tune.run_tune(bundle, make_samples(16), batches=(1,), precisions=("fp32",))
    assert set(held) == {1}
    assert {e.way for e in apart.entries} == {e.way for e in together.entries}


@pytest.mark.parametrize("goal", ["latency", "throughput", "budget=10s"])
def test_a_goal_gives_the_answers_of_pytorch_in_order(bundle: Bundle, goal: str) -> None:
    samples, said = make_samples(20), []
    with Predictor(bundle, "torch") as eager, open_predictor(bundle, None, HERE, goal=goal, say=said.append) as running:
        found, expected = running.scores(samples), eager.scores(samples)
        best = choose(profiles.own_profile(bundle), Goal.parse(goal)).way
        assert (running.backend, running.batch, running.workers) == (best.backend, best.options.batch, best.workers)
        assert said == [f"{goal}: {best.description}"]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 if best.precision == "fp32" else 0.1)


@pytest.fixture(scope="module")
def parity(tuned: Path) -> ParityReport:
    """Of all that is in the bundle."""
    bundle = Bundle.open(tuned)
    return run_parity(bundle, make_samples(4), candidates=[w for w in find_ways(bundle) if not w.why_not])


def failing(bundle: Bundle, parity: ParityReport, which: Callable[[CandidateReport], bool]) -> Bundle:
    """The bundle with a report of parity in which some candidates failed."""
    report = parity.model_copy(deep=True)
    for candidate in filter(which, report.candidates):
        candidate.verdict = "fail"
    report.save(bundle)
    return Bundle.open(bundle.root)


@pytest.mark.parametrize("goal", ["latency", "throughput", "budget=10s"])
def test_a_goal_never_takes_what_failed_parity_in_any_bucket(bundle: Bundle, parity: ParityReport, goal: str) -> None:
    best = choose(profiles.own_profile(bundle), Goal.parse(goal)).way
    own = [e.way for e in profiles.own_profile(bundle).entries if e.way.in_any_bucket == best]
    bundle = failing(bundle, parity, lambda c: (c.runtime, c.variant) == (own[-1].runtime, own[-1].variant))
    with open_predictor(bundle, None, HERE, goal=goal) as running:
        assert (running.backend, running.options.reduced) != (best.backend, best.options.reduced)
    with pytest.raises(UsageError, match=r"all that was measured here with .* failed parity"):
        open_predictor(bundle, best.backend, HERE, precision=best.precision, goal=goal)


def test_without_goal_and_runtime_the_fastest_of_the_profile_answers_in_the_precision_of_the_default(
    bundle: Bundle,
) -> None:
    best = choose(profiles.own_profile(bundle), Goal("throughput"), Limits(precision="fp32")).way
    said: list[str] = []
    with open_predictor(bundle, None, HERE, say=said.append) as running:
        assert (running.backend, running.precision) == (best.backend, "fp32")
        assert (running.batch, running.workers) == (best.options.batch, best.workers)
        assert said == [f"as mer tune found: {best.description}"]
    with open_predictor(bundle, "torchscript", HERE, batch=2) as running:
        assert (running.backend, running.batch, running.workers) == ("torchscript", 2, 1), "what is named is used"
    with open_predictor(bundle, None, HERE, workers=2) as running:
        assert running.backend == "onnxruntime", "whoever shares out the cores gets what is installed"


def test_a_profile_that_is_out_of_date_or_damaged_leaves_the_default(bundle: Bundle, parity: ParityReport) -> None:
    bundle = failing(bundle, parity, lambda c: True)
    with open_predictor(bundle, None, HERE) as running:
        assert (running.backend, running.workers) == ("onnxruntime", 1), "all that was measured failed parity"
    (bundle.root / Profile.path()).write_text("{}")
    with open_predictor(bundle, None, HERE) as running:
        assert (running.backend, running.workers) == ("onnxruntime", 1)


def test_a_bucket_that_was_not_measured_is_answered_by_what_reaches_it(bundle: Bundle) -> None:
    profile = profiles.own_profile(bundle)
    short = [e.model_copy(update={"share": 1.0}) for e in profile.entries if e.way.bucket == Bucket(utterances=4)]
    profile.model_copy(update={"entries": short}).save(bundle)
    with open_predictor(bundle, None, HERE) as running:
        assert running.buckets == sorted(bundle.manifest.contract.buckets), "not the profile, but what is installed"
    with pytest.raises(UsageError, match=r"a longer bucket was exported since, .*: run mer tune .* again"):
        open_predictor(bundle, None, HERE, goal="throughput")
    slowest = max(short, key=lambda e: e.item_ms).way.in_any_bucket
    own = [e for e in profile.entries if e.way.in_any_bucket == slowest and e.way.bucket == Bucket(utterances=8)]
    both = [*short, *(e.model_copy(update={"share": 0.0}) for e in own)]
    profile.model_copy(update={"entries": both}).save(bundle)
    said: list[str] = []
    with open_predictor(bundle, None, HERE, goal="throughput", say=said.append) as running:
        assert said == [f"throughput: {slowest.description}"]
        assert running.buckets == sorted(bundle.manifest.contract.buckets)


def test_one_of_several_processes_that_share_the_cores_runs_one_session(bundle: Bundle) -> None:
    profile = profiles.own_profile(bundle)
    quick = [e.model_copy(update={"ms": 1e-3 * e.ms}) if e.way.workers > 1 else e for e in profile.entries]
    profile.model_copy(update={"entries": quick}).save(bundle)
    blocks = Blocks(bundle.root, How(threads=1), Reading([]), bundle.root / "out", Spread(shards=4))
    several, shard, worker = How(threads=1), blocks._of_a_worker(), BatchWorker(bundle.root).how
    assert [how.predictor(bundle).workers for how in (several, shard, worker)] == [2, 1, 1]


def test_a_precision_that_the_processor_multiplies_no_faster_in_is_not_timed(bundle: Bundle) -> None:
    intel = {"fp32": 145.0, "bf16": 77.0, "int8": 400.0}
    ways = tune._ways(bundle, None)
    kept, left_out = tune._worth(ways, intel)
    assert {w.options.reduced for w in ways} - {w.options.reduced for w in kept} == {"bf16"}
    assert {reason for _, reason in left_out} == {str(slower(intel, "bf16"))}
    assert "(77 and 145 GFLOP/s)" in left_out[0][1]
    assert tune._worth(ways, {}) == (ways, []), "nothing is left out where nothing was measured"
    only = [w for w in ways if w.options.reduced == "bf16"]
    assert tune._worth(only, intel) == (only, [])
    assert profiles.own_profile(bundle).products == RATES


def test_products_are_timed_in_every_precision_that_openvino_computes_in() -> None:
    found = products(rounds=1)
    assert list(found) == ["fp32", "bf16", "int8"]
    assert min(found.values()) > 0


def test_a_verdict_on_other_files_or_weights_says_nothing_of_these(bundle: Bundle, parity: ParityReport) -> None:
    bundle = failing(bundle, parity, lambda c: c.runtime == "onnxruntime")
    wrong = {("onnxruntime", v.name) for v in bundle.manifest.variants if v.format == "onnx"}
    assert failed(bundle) == wrong
    other_bytes(bundle, "onnx-fp32-utterances4-bdynamic")
    again = Bundle.open(bundle.root)
    assert failed(again) == {w for w in wrong if "utterances4" not in w[1]}
    randomise(again, seed=9)
    assert failed(Bundle.open(bundle.root)) == set()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torchscript"])
def test_workers_side_by_side_keep_answers_and_order(bundle: Bundle, backend: str) -> None:
    samples = make_samples(30)
    with Predictor(bundle, backend, SessionOptions(threads=1), batch=2, workers=3) as several:
        found = several.scores(samples)
        assert [p.unit for p in several.predict(samples)] == [u for s in samples for u in s.units]
    with Predictor(bundle, backend, SessionOptions(threads=1), batch=2) as one:
        for mine, theirs in zip(found, one.scores(samples), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


def test_without_a_profile_of_this_machine_the_command_to_run_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = profiles.machine_class()
    monkeypatch.setattr(profiles, "machine_class", lambda: kind | {"cores": 96})
    with pytest.raises(UsageError, match=r"no profile of this machine.*there are 1 of other machines.*run mer tune"):
        open_predictor(bundle, None, HERE, goal="latency")


def test_the_machine_is_asked_what_it_is_where_there_is_a_profile_and_once(
    bundle: Bundle, exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    there = machine.gpus()

    def gpus() -> list[dict[str, str]]:
        asked.append("nvidia-smi")
        return there

    monkeypatch.setattr(machine, "gpus", gpus)
    assert list(settings_of(way(), (1, 4)))
    open_predictor(exported, None, HERE).close()
    assert not asked
    open_predictor(bundle, None, HERE).close()
    assert len(asked) == 1


def test_a_profile_of_other_weights_or_files_is_not_used(bundle: Bundle) -> None:
    chosen = choose(profiles.own_profile(bundle), Goal("latency")).way
    entry = next(e for e in profiles.own_profile(bundle).entries if e.way.in_any_bucket == chosen)
    variant = bundle.find(str(entry.way.variant))
    with bundle.commit() as change:
        change.write(variant.model, b"another")
    with pytest.raises(UsageError, match="is not the file that was measured"):
        open_predictor(Bundle.open(bundle.root), None, HERE, goal="latency")
    randomise(bundle, seed=4)
    with pytest.raises(UsageError, match="is of other weights"):
        profiles.own_profile(Bundle.open(bundle.root))


def test_a_profile_of_another_version_is_a_bundle_error(bundle: Bundle) -> None:
    name = profiles.profile_name(profiles.machine_class())
    old = json.loads(bundle.path(name).read_bytes()) | {"schema_version": 2}
    with bundle.commit() as change:
        change.write(name, json.dumps(old))
    with pytest.raises(BundleError, match=r"schema_version.*: run mer tune again"):
        profiles.own_profile(bundle)


def test_there_must_be_something_to_tune(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="run mer export first"):
        tune.run_tune(make_bundle(tmp_path / "empty"))
    with pytest.raises(UsageError, match=r"in fp16, there is \['bf16', 'fp32', 'int8'\]"):
        tune.run_tune(bundle, precisions=["fp16"])
