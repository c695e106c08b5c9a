"""The runtimes there are, what each runs, and how one is opened. Importing this needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from mer_export import registry
from mer_export.bundle import Bundle, Variant
from mer_export.cuda import DEVICES
from mer_export.errors import BundleError, NotAvailableError, UnsupportedError, UsageError
from mer_export.kept import Kept
from mer_export.registry import resolve
from runtimes.backends.admission import admit
from runtimes.backends.backend import Backend
from runtimes.backends.session import Artefact, Session, SessionOptions


@cache
def known_backends() -> dict[str, Backend]:
    """The backends of the modules and packages here that announce a `BACKEND`, by name, the reference first."""
    modules = (import_module(f"{__package__}.{m.name}") for m in iter_modules([str(Path(__file__).parent)]))
    found = [m.BACKEND for m in modules if hasattr(m, "BACKEND")]
    return {b.name: b for b in sorted(found, key=lambda b: b.rank)}


def open_session(
    bundle: Bundle, variant: Variant | None, backend: str, options: SessionOptions | None = None
) -> Session:
    """Loads a variant (None: the PyTorch weights) on a backend.

    The one way to a session: the request, then the machine, then checksums and whether a program may run, then the
    engine and what the file declares.

    Raises:
        UsageError: unknown backend, or a variant where none fits.
        UnsupportedError: the backend does not run that format, or not that way.
        NotAvailableError: package, provider or device missing on this machine.
        BundleError: a file that is damaged or does not keep the contract.
        UntrustedError: a program of somebody else that does what no export of ours does.
    """
    options = options or SessionOptions()
    check_variant(backend, variant)
    check_options(backend, options)
    kind: type[Session] = resolve(find_backend(backend).session)
    if problem := backend_problem(backend, options):
        raise NotAvailableError(problem)
    with bundle.reading():
        return _load(kind, bundle, variant, options)


def _load(kind: type[Session], bundle: Bundle, variant: Variant | None, options: SessionOptions) -> Session:
    contract = bundle.manifest.contract
    if variant is None:
        return kind(Artefact(bundle.root, contract, digest=bundle.manifest.weights.sha256), options)
    digest = bundle.variant_digest(variant)
    artefact = Artefact(
        bundle.variant_files(variant),
        contract,
        variant.lengths,
        variant.batch,
        variant.precision,
        variant.options,
        Kept.beside(bundle.root),
        digest,
        bundle.variant_size(variant),
        partial(_again, bundle, variant, digest),
    )
    admit(bundle, variant)
    if not variant.stages:
        return kind(artefact, options)
    from runtimes.backends.growing import GrowingSession
    from runtimes.backends.staged import StagedSession

    system = registry.get(bundle.manifest.system)
    stages = system.stages_of(system.parse(bundle.manifest.config), variant.stages)
    in_stages = GrowingSession if any(s.grows for s in stages) else StagedSession
    return in_stages(artefact, options, kind, stages)


@contextmanager
def _again(bundle: Bundle, variant: Variant, digest: str) -> Iterator[None]:
    """Keeps the files of an open variant from being replaced inside the block; raises BundleError where they were."""
    with bundle.reading():
        if bundle.variant_digest(variant) != digest:
            raise BundleError(f"{bundle.root}: {variant.name} was replaced since it was opened: open it again")
        yield


def check_variant(backend: str, variant: Variant | None) -> None:
    """Raises UsageError or UnsupportedError where a backend never runs that variant, on any machine."""
    record = find_backend(backend)
    if variant is None and record.formats:
        raise UsageError(
            f"runtime {backend} needs an exported variant: run mer export --format {record.formats[0]} first"
        )
    if variant is not None and not record.formats:
        raise UsageError(f"runtime {backend} runs the weights of the bundle, not variant {variant.name}")
    if variant is not None and not record.takes(variant):
        raise UnsupportedError(
            f"runtime {backend} runs {list(record.formats)} in {list(record.precisions)}, not {variant.name}"
        )


def check_options(backend: str, options: SessionOptions) -> None:
    """Raises UsageError or UnsupportedError where a backend never runs that way, on any machine."""
    record = find_backend(backend)
    if not re.fullmatch(DEVICES, options.device):
        raise UsageError(f"device {options.device!r} is none: cpu, cuda, or cuda:1 for one of several")
    if options.reduced and record.reduced(options.reduced, options.kind) is None:
        raise UnsupportedError(f"runtime {backend} makes no {options.reduced} of fp32 on {options.device}")
    if not options.cuda_graph:
        return
    if not record.captures:
        able = [b.name for b in known_backends().values() if b.captures]
        raise UnsupportedError(
            f"runtime {backend} captures no CUDA graphs: leave --cuda-graph out or use one of {able}"
        )
    if not options.on_gpu:
        raise UsageError(f"--cuda-graph captures runs on a GPU, not on {options.device}: pass --device cuda")


def find_backend(name: str) -> Backend:
    """The backend of that name; raises UsageError with the known names."""
    if name not in known_backends():
        raise UsageError(f"no runtime {name!r}, there are {list(known_backends())}")
    return known_backends()[name]


def backend_problem(name: str, options: SessionOptions | None = None) -> str | None:
    """Why a backend cannot run on this machine, in one sentence; None where it can."""
    kind: type[Session] = resolve(find_backend(name).session)
    try:
        return kind.problem(options or SessionOptions())
    except Exception as error:
        # A package whose own libraries are missing fails in whatever way they choose.
        return (
            f"runtime {name} is installed and does not load: {(str(error).splitlines() or [type(error).__name__])[0]}"
        )
