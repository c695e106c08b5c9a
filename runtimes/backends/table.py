"""The runtimes there are, what each runs, and how one is opened. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple

from mer_export.bundle import Bundle, Variant
from mer_export.errors import UnsupportedError, UsageError
from mer_export.registry import resolve
from runtimes.backends.admission import admit
from runtimes.backends.backend import Backend
from runtimes.backends.session import Session, SessionOptions


@cache
def known_backends() -> dict[str, Backend]:
    """The backends of the modules and packages here that announce a `BACKEND`, by name, the reference first."""
    modules = (import_module(f"{__package__}.{m.name}") for m in iter_modules([str(Path(__file__).parent)]))
    found = [m.BACKEND for m in modules if hasattr(m, "BACKEND")]
    return {b.name: b for b in sorted(found, key=lambda b: b.rank)}


AFRESH = {"reuse": False}
"""Extra options with which stages keep nothing from call to call, so that a benchmark sees all of their work."""


class Candidate(NamedTuple):
    """Something that could answer for a bundle: a variant (None: its PyTorch weights) on a backend."""

    variant: Variant | None
    backend: str
    options: SessionOptions


def open_session(
    bundle: Bundle, variant: Variant | None, backend: str, options: SessionOptions | None = None
) -> Session:
    """Loads a variant (None: the PyTorch weights) on a backend.

    Raises:
        UsageError: unknown backend, or a variant where none fits.
        UnsupportedError: the backend does not run that format, or not that way.
        NotAvailableError: package, provider or device missing on this machine.
        BundleError: a file that is damaged or does not keep the contract.
        UntrustedError: a program of somebody else that does what no export of ours does.
    """
    record = find_backend(backend)
    if variant is not None and record.formats and not record.takes(variant):
        raise UnsupportedError(
            f"runtime {backend} runs {list(record.formats)} in {list(record.precisions)}, not {variant.name}"
        )
    options = options or SessionOptions()
    check_options(backend, options)
    with bundle.reading():
        return _open(bundle, variant, record, options)


def _open(bundle: Bundle, variant: Variant | None, record: Backend, options: SessionOptions) -> Session:
    if variant is not None:
        bundle.variant_files(variant)
        admit(bundle, variant)
    if variant is not None and variant.stages:
        from runtimes.backends.staged import StagedSession

        return StagedSession(bundle, variant, resolve(record.session), options)
    return resolve(record.session).open(bundle, variant, options)


def check_options(backend: str, options: SessionOptions) -> None:
    """Raises UsageError or UnsupportedError where a backend never runs that way, on any machine."""
    if not options.cuda_graph:
        return
    if not find_backend(backend).captures:
        able = [b.name for b in known_backends().values() if b.captures]
        raise UnsupportedError(
            f"runtime {backend} captures no CUDA graphs: leave --cuda-graph out or use one of {able}"
        )
    if options.device != "cuda":
        raise UsageError(f"--cuda-graph captures runs on a GPU, not on {options.device}: pass --device cuda")


def find_backend(name: str) -> Backend:
    """The backend of that name; raises UsageError with the known names."""
    if name not in known_backends():
        raise UsageError(f"no runtime {name!r}, there are {list(known_backends())}")
    return known_backends()[name]


def candidates(bundle: Bundle) -> list[Candidate]:
    """Everything of this bundle that this machine can run, the eager reference first."""
    return [c for c, problem in survey(bundle) if problem is None]


def unavailable(bundle: Bundle) -> list[tuple[Candidate, str]]:
    """What this machine cannot run, each with the reason in one sentence."""
    return [(c, problem) for c, problem in survey(bundle) if problem is not None]


def survey(bundle: Bundle) -> list[tuple[Candidate, str | None]]:
    """Every variant on every backend and device that takes it, with the reason where this machine cannot run it."""
    found: list[tuple[Candidate, str | None]] = []
    for backend in known_backends().values():
        variants: list[Variant | None] = [v for v in bundle.manifest.variants if backend.takes(v)]
        for options in backend.offers:
            problem = backend_problem(backend.name, options)
            found += [
                (Candidate(v, backend.name, own), problem)
                for v in (variants if backend.formats else [None])
                if options.lowered is None or v is None or v.precision == "fp32"
                for own in ((options, replace(options, extra=AFRESH)) if v and v.stages else (options,))
            ]
    return found


def backend_problem(name: str, options: SessionOptions | None = None) -> str | None:
    """Why a backend cannot run on this machine, in one sentence; None where it can."""
    return resolve(find_backend(name).session).problem(options or SessionOptions())
