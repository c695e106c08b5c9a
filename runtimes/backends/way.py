"""A way to run a bundle: which of its files on which backend, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

from mer_export import machine
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle, Strict, Variant
from mer_export.errors import MerError, NotAvailableError, UsageError
from runtimes.backends.admission import refusal
from runtimes.backends.session import Session, SessionOptions
from runtimes.backends.table import backend_problem, check_options, find_backend, known_backends, open_session

EAGER = "torch"
"""The backend that runs the bundle's own weights."""
SESSION_SIZE = 2.5
"""Bytes that a loaded session may take for each byte of the weights: OpenVINO keeps packed ones beside its own."""

Item = TypeVar("Item")


class Way(Strict, frozen=True):
    """`variant` names what runs, None the bundle's own weights; its format, its bucket, its `fixed` batch (0: any) and
    whether it is in stages stand here too. `precision` is what it computes in.

    `workers` sessions run side by side, each with the threads of `options`. `why_not` says why this machine cannot run
    it.
    """

    backend: str
    options: SessionOptions = SessionOptions()
    variant: str | None = None
    format: str = "eager"
    precision: str = "fp32"
    bucket: Bucket | None = None
    fixed: int = 0
    stages: bool = False
    workers: int = 1
    why_not: str | None = None

    @classmethod
    def of(cls, variant: Variant, backend: str, options: SessionOptions | None = None, **more: Any) -> Self:
        """A variant on a backend."""
        options = options or SessionOptions()
        return cls(
            backend=backend,
            options=options,
            variant=variant.name,
            format=variant.format,
            precision=options.reduced or variant.precision,
            bucket=variant.lengths,
            fixed=variant.batch,
            stages=bool(variant.stages),
            **more,
        )

    @property
    def runtime(self) -> str:
        """Backend with what differs from its defaults: `openvino bf16`, `onnxruntime cuda`, `onnxruntime stages`."""
        parts = (
            self.backend,
            self.options.reduced,
            self.options.device if self.options.device != "cpu" else "",
            "graph" if self.options.cuda_graph else "",
            "stages" if self.stages else "",
            "" if self.options.reuse else "afresh",
        )
        return " ".join(part for part in parts if part)

    @property
    def name(self) -> str:
        return f"{self.runtime}: {self.variant or 'eager'}"

    @property
    def description(self) -> str:
        """In any bucket, for people: `onnxruntime onnx fp32, 1 thread, batch 4`."""
        device = "" if self.options.device == "cpu" else f" {self.options.device}"
        stages = " stages" if self.stages else ""
        threads = f"{self.options.threads} thread{'' if self.options.threads == 1 else 's'}"
        workers = f", {self.workers} workers" if self.workers > 1 else ""
        what = f"{self.backend}{device}{stages} {self.format} {self.precision}"
        return f"{what}, {threads}{workers}, batch {self.options.batch}"

    @property
    def in_any_bucket(self) -> Self:
        """What ways have in common that differ by bucket alone, and answer a data set together."""
        return self.model_copy(update={"variant": None, "bucket": None, "why_not": None})

    @property
    def is_eager(self) -> bool:
        return self.variant is None and self.options.device == "cpu" and not self.options.reduced

    def having(self, **options: Any) -> Self:
        """The same way with other options."""
        return self.model_copy(update={"options": replace(self.options, **options)})

    def open(self, bundle: Bundle) -> Session:
        """Loads it; raises as `open_session`."""
        return open_session(bundle, bundle.find(self.variant) if self.variant else None, self.backend, self.options)


def eager(threads: int | None = None) -> Way:
    """The reference: PyTorch on the CPU with the bundle's own weights."""
    return Way(backend=EAGER, options=SessionOptions(threads=threads))


def find_ways(bundle: Bundle, threads: int | None = None, runtime: str | None = None) -> list[Way]:
    """Every variant on every backend (or that of `runtime`) and device that takes it, eager first, with the reason
    where it cannot run here.

    What comes in stages is there twice: as it answers, and keeping nothing from call to call, so that a benchmark sees
    all of its work.

    Raises:
        UsageError: no such runtime.
    """
    found: list[Way] = []
    refused = {v.name: refusal(bundle, v) for v in bundle.manifest.variants}
    for backend in known_backends().values() if runtime is None else [find_backend(runtime)]:
        for offered in backend.offers:
            options, problem = replace(offered, threads=threads), backend_problem(backend.name, offered)
            if problem and offered.reduced and offered.on_gpu:
                # One row says that there is no GPU.
                continue
            if not backend.formats:
                found.append(
                    Way(backend=backend.name, options=options, precision=options.reduced or "fp32", why_not=problem)
                )
            for variant in backend.usable(bundle.manifest.variants, options.kind):
                if options.reduced and variant.precision != "fp32":
                    continue
                way = Way.of(variant, backend.name, options, why_not=problem or refused[variant.name])
                found += [way, way.having(reuse=False)] if variant.stages else [way]
    return found


def only(ways: Sequence[Way], device: str | None = None, precision: str | None = None) -> list[Way]:
    """Those of `find_ways` on one device and in one precision; None takes any.

    Raises:
        NotAvailableError: none of them, because nothing runs on that device here.
        UsageError: none of them, because nothing was exported in that precision and no runtime makes it.
    """
    there = [
        w.having(device=device) if device else w
        for w in ways
        if device is None or w.options.kind == SessionOptions(device).kind
    ]
    found = [w for w in there if precision in (None, w.precision)]
    if found or not ways:
        return found
    where = f" on {device}" if device else ""
    if there and all(w.why_not for w in there):
        raise NotAvailableError(f"nothing runs in {precision}{where}: {there[0].why_not}")
    known = list(dict.fromkeys(w.precision for w in there))
    raise UsageError(f"nothing here runs in {precision or 'any precision'}{where}, there are {known}: export it first")


def find_graphs(bundle: Bundle, threads: int | None = None, runtime: str | None = None) -> list[Way]:
    """Every way on CUDA that can be captured, as a CUDA graph.

    Raises:
        NotAvailableError: none of them runs on this machine.
        UnsupportedError: the runtime that is named captures none.
    """
    if runtime is not None:
        check_options(runtime, SessionOptions(device="cuda", cuda_graph=True))
    found = [
        w.having(cuda_graph=True)
        for w in find_ways(bundle, threads, runtime)
        if w.options.on_gpu and known_backends()[w.backend].captures
    ]
    if all(w.why_not for w in found):
        raise NotAvailableError(f"--cuda-graph needs a runtime on CUDA: {found[0].why_not}")
    return found


def why_broken(error: Exception) -> str:
    """The reason to give for a way that failed: a runtime that breaks on a file is a finding about that file."""
    if isinstance(error, MerError):
        return f"it does not run: {error}"
    return f"it does not run: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def grouped_reasons(not_run: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(reason, names) of (name, reason) pairs, in order of appearance."""
    groups: dict[str, list[str]] = {}
    for name, reason in not_run:
        groups.setdefault(reason, []).append(name)
    return list(groups.items())


def in_memory(bundle: Bundle, items: Sequence[Item], sessions: int = 1, beside: int = 0) -> list[list[Item]]:
    """Groups of what runs a bundle that memory can hold loaded at the same time, at least one in each.

    Args:
        bundle: what they run.
        items: in the order to keep.
        sessions: of each item.
        beside: sessions that are loaded with every group.
    """
    free = machine.available_bytes()
    each = SESSION_SIZE * _weight(bundle)
    most = max(1, int((free / each - beside) / sessions)) if free else max(1, len(items))
    return [list(items[i : i + most]) for i in range(0, len(items), most)] or [[]]


def _weight(bundle: Bundle) -> int:
    """Bytes of the weights; of an encoder that a bundle took along, which has none, those of its largest variant."""
    files = bundle.manifest.files
    if WEIGHTS in files:
        return files[WEIGHTS].size
    folders = {m.rpartition("/")[0] for v in bundle.manifest.variants for m in v.models}
    return max(sum(e.size for n, e in files.items() if n.startswith(f"{f}/")) for f in folders)
