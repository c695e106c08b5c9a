"""The predictor that a command line asks for: as its options say, as the machine profile says for a goal, or else on
what is installed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mer_export import machine
from mer_export.bundle import Bundle, Variant
from mer_export.errors import BundleError, UsageError
from runtimes.backends.backend import Backend
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem, check_options, known_backends
from runtimes.backends.way import Way
from runtimes.predict.machine_profile import (
    Goal,
    Limits,
    Profile,
    choose,
    own_profile,
    profiles,
    reaching,
    scores,
    variants_of,
)
from runtimes.predict.predictor import Predictor
from runtimes.predict.verdicts import failed

USUAL = "onnxruntime"


def open_predictor(
    bundle: Bundle,
    backend: str | None,
    options: SessionOptions,
    batch: int | None = None,
    precision: str | None = None,
    goal: str | None = None,
    say: Callable[[str], None] | None = None,
    workers: int | None = None,
    most_workers: int | None = None,
    **rest: Any,
) -> Predictor:
    """With a goal: what the profile says, leaving out what failed parity. Without one, in `precision` or fp32:
    `backend`; where none is named, what the profile says of throughput; without a profile (or where `workers` are
    given) what is installed (`installed_backend`).

    Args:
        bundle: opened bundle.
        backend: a name in `known_backends()`.
        options: device, threads.
        batch: items per run.
        precision: of the variants, or what the runtime makes of fp32 ones.
        goal: `latency`, `throughput` or `budget=5ms`; all that is given beside it restricts the choice.
        say: told what was chosen.
        workers: sessions side by side; None is one, or as the profile says.
        most_workers: the most that the profile may say.
        rest: further arguments of `Predictor`.

    Raises:
        UsageError: a goal, and workers beside it; no profile of this machine, one that is out of date, or nothing in it
            that keeps goal and limits.
    """
    if goal is None:
        precision = precision or "fp32"
        free = backend is None and not options.cuda_graph and workers is None
        limits = Limits(None, precision, options.threads, batch, options.device, most_workers)
        if free and (usual := measured(bundle, limits)):
            return opened_as(bundle, *usual, say, "as mer tune found", **rest)
        backend = backend or installed_backend(bundle, options, precision)
        check_options(backend, options)
        return Predictor(bundle, backend, options, batch, precision=precision, workers=workers or 1, **rest)
    if workers is not None:
        raise UsageError("--goal says how many workers: leave --workers out")
    if options.cuda_graph:
        raise UsageError("--goal chooses from what mer tune measured, which is without CUDA graphs: leave one out")
    wanted = Goal.parse(goal)
    limits = Limits(backend, precision, options.threads, batch, options.device, most_workers)
    known = own_profile(bundle)
    profile = reaching(bundle, known)
    if not scores(profile, limits) and scores(known, limits):
        raise UsageError(
            f"--goal {goal}: of all that was measured here with {limits.text} a longer bucket was exported since, or "
            f"there was no time for it: run mer tune {bundle.root} again"
        )
    proven = _proven(bundle, profile)
    if not scores(proven, limits) and scores(profile, limits):
        raise UsageError(
            f"--goal {goal}: all that was measured here with {limits.text} failed parity: export it again, or name "
            "--runtime without --goal"
        )
    way = choose(proven, wanted, limits).way
    return opened_as(bundle, way, variants_of(bundle, profile, way), say, goal, **rest)


def opened_as(
    bundle: Bundle, way: Way, variants: list[Variant], say: Callable[[str], None] | None, why: str, **rest: Any
) -> Predictor:
    """A predictor that runs a way."""
    if say:
        say(f"{why}: {way.description}")
    return Predictor(
        bundle,
        way.backend,
        way.options,
        way.options.batch,
        precision=way.precision,
        variants=variants,
        workers=way.workers,
        **rest,
    )


def share_out(device: str, threads: int | None, workers: int | None) -> tuple[int | None, int]:
    """Threads of a session, and how many sessions serve side by side: one of one thread for each core, unless said
    otherwise; on a GPU one."""
    if device != "cpu":
        return threads, workers or 1
    workers = workers or max(1, machine.cores() // (threads or 1))
    return threads or max(1, machine.cores() // workers), workers


def measured(bundle: Bundle, limits: Limits) -> tuple[Way, list[Variant]] | None:
    """The way with the most throughput within limits, and its variants; None without a profile that is up to date."""
    if not profiles(bundle):
        return None
    try:
        profile = reaching(bundle, own_profile(bundle))
        way = choose(_proven(bundle, profile), Goal("throughput"), limits).way
        return way, variants_of(bundle, profile, way)
    except (UsageError, BundleError):
        return None


def installed_backend(bundle: Bundle, options: SessionOptions, precision: str = "fp32") -> str:
    """ONNX Runtime where it is installed and has variants; else another one that is and has, PyTorch's eager last.

    Where none is, it is ONNX Runtime, whose error says what to export or install.
    """
    known = known_backends()
    return next((n for n in (USUAL, *reversed(known)) if _able(bundle, known[n], options, precision)), USUAL)


def _able(bundle: Bundle, record: Backend, options: SessionOptions, precision: str) -> bool:
    """Whether a backend is installed and has variants (or weights) to answer with in this precision."""
    stored = record.stored(precision, options.kind)
    there = any(v.precision == stored for v in record.usable(bundle.manifest.variants, options.kind))
    ready = stored in record.precisions and (there or not record.formats)
    if not ready or (options.cuda_graph and not record.captures):
        return False
    as_asked = replace(options, reduced=record.reduced(precision, options.kind))
    return backend_problem(record.name, as_asked) is None


def _proven(bundle: Bundle, profile: Profile) -> Profile:
    """The profile without ways that failed parity in some bucket."""
    wrong = failed(bundle)
    broken = {e.way.in_any_bucket for e in profile.entries if (e.way.runtime, e.way.variant) in wrong}
    kept = [e for e in profile.entries if e.way.in_any_bucket not in broken]
    return profile.model_copy(update={"entries": kept})
