"""What was measured on one machine, and the choice that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from mer_export import machine
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Strict, Variant
from mer_export.errors import UsageError
from mer_export.markdown import some, table
from mer_export.report import Report
from runtimes.backends.table import find_backend, known_backends
from runtimes.backends.way import Way, grouped_reasons

FOLDER = "profiles"


class Entry(Strict):
    """One way to run one bucket: milliseconds per call, the lower quartile (another process only ever adds to it) and
    the 90th percentile.

    `share` is the part of the data that goes to this bucket where these variants answer; `sha256` says which file ran,
    `rounds` how often it was timed.
    """

    way: Way
    sha256: str
    ms: float
    p90: float
    share: float
    rounds: int

    @property
    def item_ms(self) -> float:
        """Milliseconds per item when all workers are busy."""
        return self.ms / (self.way.options.batch * self.way.workers)


class EncoderRow(Strict):
    """One way to run an encoder in one bucket: milliseconds an item, p50, by batch size.

    `items` are as many as an utterance has: pictures of a clip; one sentence, or window of sound.
    """

    input: str
    encoder: str
    items: int
    lengths: Bucket
    runtime: str
    precision: str
    item_ms: dict[int, float]


class Profile(Report):
    """All measurements of one machine."""

    schema_version: Literal[3] = 3
    machine: dict[str, Any]
    weights_sha256: str
    source: str
    entries: list[Entry]
    load_average: float
    encoders: list[EncoderRow] = Field(default_factory=list)
    """Times of the encoders that the bundle takes along, each alone."""
    products: dict[str, float] = Field(default_factory=dict)
    """GFLOP/s of a large product on one thread by precision, as OpenVINO computes it; empty without it."""
    not_run: list[tuple[str, str]] = Field(default_factory=list)
    """(way, reason) of what broke."""

    @classmethod
    def path(cls) -> str:
        return profile_name(machine_class())

    @classmethod
    def command(cls) -> str:
        return "mer tune"

    def page(self) -> str:
        return markdown(self)


@dataclass(frozen=True)
class Goal:
    """What is wanted: the least time to an answer, the most answers, or the most within a time limit."""

    kind: Literal["latency", "throughput", "budget"]
    budget_ms: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Goal:
        """`latency`, `throughput` or `budget=5ms`; raises UsageError for anything else."""
        if text == "latency":
            return cls("latency")
        if text == "throughput":
            return cls("throughput")
        found = re.fullmatch(r"budget=(\d+(?:\.\d+)?)(ms|s)", text)
        if found is None or float(found[1]) == 0:
            raise UsageError(f"--goal {text}: it is latency, throughput or budget=5ms")
        return cls("budget", float(found[1]) * (1000 if found[2] == "s" else 1))


def encoder_ways(
    profile: Profile, goal: Goal, backend: str | None = None, kind: str = "cpu"
) -> dict[tuple[str, str], dict[str, Any]]:
    """What runs each encoder best, by input and name: `backend` and `batch`.

    In fp32 only, in which all runtimes give the same features: what reduced features do to labels was not measured.

    Args:
        profile: with times of the encoders.
        goal: for latency items come one by one, else as many together as is best.
        backend: the only one that may.
        kind: of device that they run on.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    able = {n if kind == "cpu" else f"{n} {kind}": n for n in ([backend] if backend else known_backends())}
    plain = [r for r in profile.encoders if r.precision == "fp32" and r.runtime in able]
    for name in dict.fromkeys((r.input, r.encoder) for r in plain):
        own = [r for r in plain if (r.input, r.encoder) == name]
        buckets = {r.lengths for r in own}
        sizes = {b for r in own for b in r.item_ms if goal.kind != "latency" or b == min(r.item_ms)}
        costs = {
            (runtime, size): sum(r.item_ms[size] for r in rows)
            for runtime, rows in ((n, [r for r in own if r.runtime == n]) for n in {r.runtime for r in own})
            for size in sizes
            if {r.lengths for r in rows} == buckets and all(size in r.item_ms for r in rows)
        }
        if costs:
            runtime, size = min(costs, key=lambda k: (costs[k], k))
            found[name] = {"backend": able[runtime], "batch": size}
    return found


@dataclass(frozen=True)
class Limits:
    """What a choice is restricted to; None allows everything."""

    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    batch: int | None = None
    device: str | None = None
    workers: int | None = None
    """At most."""

    @property
    def text(self) -> str:
        """Those that are set: `precision int8, threads 1`."""
        return ", ".join(f"{k} {v}" for k, v in asdict(self).items() if v is not None) or "all buckets"

    def allow(self, way: Way) -> bool:
        """Whether a way to run keeps them."""
        pairs = (
            (self.backend, way.backend),
            (self.precision, way.precision),
            (self.threads, way.options.threads),
            (self.batch, way.options.batch),
            (self.device, way.options.device),
        )
        few = self.workers is None or way.workers <= self.workers
        return few and all(wanted is None or wanted == own for wanted, own in pairs)


@dataclass(frozen=True)
class Score:
    """A way to run over all buckets, weighted by their shares."""

    way: Way
    call_ms: float
    item_ms: float
    slowest_ms: float
    """90th percentile of a call in the slowest bucket."""


def machine_class() -> dict[str, Any]:
    """What a profile belongs to: processor, cores, GPU, and the versions of what runs models."""
    found = machine.describe()
    versions = {k: v for k, v in found["versions"].items() if k not in ("numpy", "onnx")}
    return {
        "cpu": found["cpu"],
        "cores": found["cores"],
        "gpu": [g.get("name", "?") for g in found["gpu"]],
        "versions": versions,
    }


def profile_name(kind: dict[str, Any]) -> str:
    """Where the profile of a class of machine lies in a bundle."""
    return f"{FOLDER}/{hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]}.json"


def profiles(bundle: Bundle) -> list[str]:
    """The files of profiles in a bundle, of any machine: to ask what this one is takes up to a second with a GPU."""
    return [n for n in bundle.manifest.files if n.startswith(f"{FOLDER}/")]


def own_profile(bundle: Bundle) -> Profile:
    """The profile of this machine.

    Raises:
        UsageError: none was made here, or it is of other weights.
        BundleError: it cannot be read.
    """
    profile = Profile.load(bundle)
    if profile is None:
        kind = machine_class()
        others = sum(n.endswith(".json") for n in profiles(bundle))
        elsewhere = f" (there are {others} of other machines or versions)" if others else ""
        raise UsageError(
            f"{bundle.root} has no profile of this machine, {kind['cpu']} with {kind['cores']} cores{elsewhere}: "
            f"run mer tune {bundle.root}"
        )
    if profile.weights_sha256 != bundle.manifest.weights.sha256:
        raise UsageError(f"{bundle.root}: the profile of this machine is of other weights: run mer tune again")
    return profile


def scores(profile: Profile, limits: Limits | None = None) -> list[Score]:
    """Every way that answers all of the data and was measured in each of its buckets."""
    found: dict[Way, list[Entry]] = {}
    for entry in profile.entries:
        if limits is None or limits.allow(entry.way):
            found.setdefault(entry.way.in_any_bucket, []).append(entry)
    return [
        Score(
            way,
            call_ms=sum(e.share * e.ms for e in rows),
            item_ms=sum(e.share * e.item_ms for e in rows),
            slowest_ms=max(e.p90 for e in rows),
        )
        for way, rows in found.items()
        if sum(e.share for e in rows) > 1 - 1e-6
    ]


def choose(profile: Profile, goal: Goal, limits: Limits | None = None) -> Score:
    """The best measured way for a goal.

    Latency looks at single items, throughput at all; a budget takes the most throughput among ways whose calls end
    in time in every bucket, nine times out of ten.

    Raises:
        UsageError: nothing measured keeps the limits, or the budget.
    """
    found = scores(profile, limits)
    if not found:
        wanted = limits.text if limits else "all buckets"
        raise UsageError(f"nothing that was measured here has {wanted}: export it, then run mer tune again")
    if goal.kind == "throughput":
        return min(found, key=lambda s: s.item_ms)
    if goal.kind == "latency":
        single = [s for s in found if s.way.workers == 1]
        if not single:
            raise UsageError(
                "nothing that was measured here answers one call at a time, all with several sessions side by side: "
                "run mer tune again, or take --goal throughput"
            )
        least = min(s.way.options.batch for s in single)
        return min((s for s in single if s.way.options.batch == least), key=lambda s: s.call_ms)
    fitting = [s for s in found if s.slowest_ms <= goal.budget_ms]
    if not fitting:
        fastest = min(found, key=lambda s: s.slowest_ms)
        raise UsageError(
            f"nothing answers within {goal.budget_ms:g} ms here: the fastest, {fastest.way.description}, takes "
            f"{fastest.slowest_ms:.2f} ms"
        )
    return min(fitting, key=lambda s: s.item_ms)


def variants_of(bundle: Bundle, profile: Profile, way: Way) -> list[Variant]:
    """The variants that a way runs, one per bucket; raises UsageError where they are not those measured."""
    found = []
    for entry in (e for e in profile.entries if e.way.in_any_bucket == way):
        there = next((v for v in bundle.manifest.variants if v.name == entry.way.variant), None)
        if there is None or bundle.manifest.files[there.model].sha256 != entry.sha256:
            raise UsageError(
                f"{bundle.root}: {entry.way.variant} is not the file that was measured: "
                f"run mer tune {bundle.root} again"
            )
        found.append(there)
    return found


def reaching(bundle: Bundle, profile: Profile) -> Profile:
    """The profile without ways of which a longer bucket is in the bundle than those that were measured: it was exported
    since, or there was no time for it."""
    measured: dict[Way, list[Bucket]] = {}
    for entry in profile.entries:
        if entry.way.bucket is not None:
            measured.setdefault(entry.way.in_any_bucket, []).append(entry.way.bucket)
    there = {files: _exported(bundle, *files) for files in {_files(way) for way in measured}}
    whole = {
        way
        for way, buckets in measured.items()
        if all(any(b.holds(own) for b in buckets) for own in there[_files(way)])
    }
    return profile.model_copy(update={"entries": [e for e in profile.entries if e.way.in_any_bucket in whole]})


def _files(way: Way) -> tuple[str, str, str, str, bool, int]:
    """What files that run that way have in common, whatever their bucket: backend and device that take them, kind."""
    stored = "fp32" if way.options.reduced else way.precision
    return way.backend, way.options.kind, way.format, stored, way.stages, way.fixed


def _exported(bundle: Bundle, backend: str, device: str, *kind: str | bool | int) -> list[Bucket]:
    """The buckets of these files."""
    able = find_backend(backend).usable(bundle.manifest.variants, device)
    return [v.lengths for v in able if (v.format, v.precision, bool(v.stages), v.batch) == kind]


def markdown(profile: Profile) -> str:
    """The best way for each goal, and all others with what they take."""
    found = sorted(scores(profile), key=lambda s: s.item_ms)
    lines = [
        "# Machine profile",
        "",
        f"{profile.machine['cpu']}, {profile.machine['cores']} cores; {profile.source}.",
        "",
    ]
    if profile.products:
        lines += [f"- one thread multiplies at {_rates(profile.products)} GFLOP/s"]
    lines += [f"- {goal.kind}: {_best(profile, goal)}" for goal in (Goal("latency"), Goal("throughput"))]
    lines += ["", "Over all buckets, by the part of the data that goes to each:", ""]
    lines += table(("way to run", "ms a call", "p90, slowest bucket", "items/s"), _rows(found))
    if profile.encoders:
        lines += ["", "Encoders, their networks alone:", "", *table(*encoder_table(profile.encoders))]
    if profile.not_run:
        lines += ["", "Not measured:", ""]
        lines += [f"- {reason} ({some(names)})" for reason, names in grouped_reasons(profile.not_run)]
    return "\n".join(lines) + "\n"


def _best(profile: Profile, goal: Goal) -> str:
    try:
        best = choose(profile, goal)
    except UsageError as error:
        return str(error)
    return f"{best.way.description}: {best.call_ms:.2f} ms a call, {1000 / best.item_ms:.0f} items/s"


def _rates(measured: dict[str, float]) -> str:
    return ", ".join(f"{rate:.0f} ({precision})" for precision, rate in measured.items())


def _rows(found: Sequence[Score]) -> list[tuple[str, ...]]:
    return [(s.way.description, f"{s.call_ms:.2f}", f"{s.slowest_ms:.2f}", f"{1000 / s.item_ms:.0f}") for s in found]


def encoder_table(encoders: Sequence[EncoderRow]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: every way to run an encoder in a bucket."""
    batches = sorted({b for r in encoders for b in r.item_ms})
    header = ("input", "encoder", "lengths", "runtime", "precision", *(f"batch {b}, ms an item" for b in batches))
    rows = [
        (r.input, r.encoder, r.lengths.name, r.runtime, r.precision, *(ms_text(r.item_ms.get(b)) for b in batches))
        for r in encoders
    ]
    return header, rows


def ms_text(value: float | None) -> str:
    """Milliseconds, a dash where they were not measured."""
    return "–" if value is None else f"{value:.2f}"
