"""What `mer tune` times: every way at a first look, what may be best again, and no longer than it may."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Once
from small_bundle import make_bundle, make_samples
from small_profile import PASSES, RATES, profile_of, tuned, way

from mer_export import machine
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from runtimes.backends.way import Way
from runtimes.predict import machine_profile as profiles
from runtimes.predict.machine_profile import Goal, Limits, choose
from runtimes.speed import settings, tune
from runtimes.speed.products import products, slower
from runtimes.speed.settings import first_look, near_best, settings_of, worth_widening
from runtimes.speed.timing import PAUSE, Clock, Deadline


@pytest.fixture(autouse=True)
def _rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "products", lambda: RATES)


@pytest.fixture
def bundle(once: Once, exported: Bundle, tmp_path: Path) -> Bundle:
    """A tuned bundle to write to."""
    return Bundle.open(shutil.copytree(tuned(once, exported).root, tmp_path / "bundle"))


def test_what_may_turn_out_best_is_timed_again() -> None:
    best, doubled, slow = way(), way(threads=2), way(threads=4)
    many, few = way(batch=16, workers=2), way(batch=4, workers=2)
    found = profile_of([(best, 1.0, 1.0), (doubled, 2.0, 2.0), (slow, 2.5, 2.5), (many, 8.0, 8.0), (few, 8.0, 8.0)])
    assert near_best(found, 2.2) == {best, doubled, many}
    reduced = profile_of([(best, 1.0, 1.0), (way(precision="int8", threads=4), 9.0, 9.0)])
    assert len(near_best(reduced, 2.2)) == 2, "each precision has a best of its own"


def test_a_first_look_is_at_both_ends_of_the_batches_and_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "parallel", lambda: [(1, 1), (2, 1), (4, 1), (1, 4)])
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
    monkeypatch.setattr(settings, "parallel", lambda: [(1, 1), (1, 2)])
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


def on_a_clock(patch: pytest.MonkeyPatch, opening: float, call: Callable[[Way], float]) -> tuple[Clock, list[Way]]:
    """A clock that stands still but for what sessions take, and the ways that are opened on it."""
    now, opened = [0.0], []

    def passes(seconds: float) -> None:
        now[0] += seconds

    def slow(way: Way, _: Bundle) -> Slow:
        passes(opening)
        opened.append(way)
        return Slow(passes, call(way))

    patch.setattr(Way, "open", slow)
    return Clock(wall=lambda: now[0], cpu=lambda: now[0], sleep=passes), opened


@pytest.mark.parametrize("minutes", [0.1, 1.0, 2.0, 30.0])
def test_the_time_bounds_openings_too_and_the_fastest_is_found_where_there_is_time_for_a_look_at_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    clock, opened = on_a_clock(monkeypatch, OPENING, lambda way: CALL / 4 if way.precision == "int8" else CALL)
    monkeypatch.setattr(settings, "parallel", lambda: [(1, 1), (2, 1), (1, 2)])
    found = tune.run_tune(bundle, make_samples(16), batches=(1, 3), minutes=minutes, clock=clock)
    buckets = {e.way.bucket for e in found.entries}
    precisions = {e.way.precision for e in found.entries}
    # What it takes where there is no time: one of each precision in each bucket.
    least = len(buckets) * len(precisions)
    assert clock.wall() <= max(60 * minutes, least * (OPENING + CALL + PAUSE))
    assert len(opened) <= max(least, 60 * minutes / OPENING)
    assert buckets == set(bundle.manifest.contract.buckets)
    assert choose(found, Goal("latency")).way.precision == "int8"
    assert (minutes == 30.0) != any("give more with mer tune --minutes" in why for _, why in found.not_run)


def test_what_is_far_from_the_best_at_a_first_look_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "parallel", lambda: [(1, 1), (1, 2)])
    clock, _ = on_a_clock(monkeypatch, 0.0, lambda way: 1e-3 if way.backend == "openvino" else 5e-3)
    found = tune.run_tune(bundle, batches=(1,), precisions=("fp32",), clock=clock)
    assert {e.way.backend for e in found.entries if e.way.workers == 1} == {"openvino", "onnxruntime", "torchscript"}
    assert {e.way.backend for e in found.entries if e.way.workers == 2} == {"openvino"}
    assert [why for name, why in found.not_run if "2 workers" in name] == [tune.FAR] * 3


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
    said = f"{prefix}inactive_file 300\n{prefix}active_file 50\n{prefix}anon 4000\n"
    for name, content in ((limit, "10000\n"), (used, "5000\n"), (parts, said)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert machine.available_bytes() == 5350
    (tmp_path / limit).write_text("max\n" if version == "max" else "9223372036854771712\n")
    assert machine.available_bytes() > 2**20, "what the machine has"


def test_memory_for_one_session_at_a_time_times_the_same_ways(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    original = tune.Tuning._time

    def watched(tuning: tune.Tuning, group: list[Way], *rest: Any) -> list[Any]:
        held.append(len(group))
        return original(tuning, group, *rest)

    monkeypatch.setattr(tune.Tuning, "_time", watched)
    monkeypatch.setattr(settings, "parallel", lambda: [(1, 1)])
    monkeypatch.setattr(tune, "PASSES", PASSES[:2])
    together = tune.run_tune(bundle, make_samples(16), batches=(1,), precisions=("fp32",))
    assert max(held) > 1
    held.clear()
    monkeypatch.setattr(machine, "available_bytes", lambda: 1)
    apart = tune.run_tune(bundle, make_samples(16), batches=(1,), precisions=("fp32",))
    assert set(held) == {1}
    assert {e.way for e in apart.entries} == {e.way for e in together.entries}


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


def test_there_must_be_something_to_tune(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="run mer export first"):
        tune.run_tune(make_bundle(tmp_path / "empty"))
    with pytest.raises(UsageError, match=r"in fp16, there is \['bf16', 'fp32', 'int8'\]"):
        tune.run_tune(bundle, precisions=["fp16"])
