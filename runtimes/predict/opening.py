"""The predictor that a command line asks for: as its options say, or as the machine profile says for a goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mer_export.bundle import Bundle
from mer_export.errors import UsageError
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import check_options
from runtimes.predict.machine_profile import Goal, Limits, choose, own_profile, variants_of
from runtimes.predict.predictor import Predictor


def open_predictor(
    bundle: Bundle,
    backend: str | None,
    options: SessionOptions,
    batch: int | None = None,
    precision: str | None = None,
    goal: str | None = None,
    default: str = "onnxruntime",
    say: Callable[[str], None] | None = None,
    **rest: Any,
) -> Predictor:
    """Without a goal: `backend` or the default in `precision` or fp32. With one: what the profile says.

    Args:
        bundle: opened bundle.
        backend: a name in `known_backends()`.
        options: device, threads.
        batch: items per run.
        precision: of the variants, or what the runtime makes of fp32 ones.
        goal: `latency`, `throughput` or `budget=5ms`; all that is given beside it restricts the choice.
        default: the backend where none is given.
        say: told what was chosen.
        rest: further arguments of `Predictor`.

    Raises:
        UsageError: no profile of this machine, one that is out of date, or nothing in it that keeps goal and limits.
    """
    if goal is None:
        check_options(backend or default, options)
        return Predictor(bundle, backend or default, options, batch, precision=precision or "fp32", **rest)
    if options.cuda_graph:
        raise UsageError("--goal chooses from what mer tune measured, which is without CUDA graphs: leave one out")
    wanted = Goal.parse(goal)
    limits = Limits(backend, precision, options.threads, batch, options.device)
    profile = own_profile(bundle)
    way = choose(profile, wanted, limits).way
    if say:
        say(f"{goal}: {way.description}")
    return Predictor(
        bundle,
        way.backend,
        way.options,
        way.options.batch,
        precision=way.precision,
        variants=variants_of(bundle, profile, way),
        workers=way.workers,
        **rest,
    )
