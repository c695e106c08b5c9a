"""What answers by a profile of this machine: the choice by a goal, and when there is nothing to choose from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Once
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import make_samples, other_bytes, randomise
from small_profile import profile_of, tuned, way

from benchmarks.choice import judge
from mer_export import machine
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.errors import BundleError, UsageError
from runtimes import BatchWorker
from runtimes.backends.session import SessionOptions
from runtimes.backends.way import Way, find_ways
from runtimes.parity.report import CandidateReport, ParityReport
from runtimes.parity.run import run_parity
from runtimes.pipeline import How, Reading
from runtimes.predict import machine_profile as profiles
from runtimes.predict.machine_profile import Goal, Limits, Profile, choose
from runtimes.predict.opening import open_predictor
from runtimes.predict.predictor import Predictor
from runtimes.predict.verdicts import failed
from runtimes.scale.command import Blocks, Spread
from runtimes.speed.settings import settings_of

HERE = SessionOptions()


@pytest.fixture
def bundle(once: Once, exported: Bundle, tmp_path: Path) -> Bundle:
    """A tuned bundle to write to."""
    return Bundle.open(shutil.copytree(tuned(once, exported).root, tmp_path / "bundle"))


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
def parity(once: Once, exported: Bundle) -> ParityReport:
    """Of all that is in the bundle."""
    bundle = tuned(once, exported)
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
