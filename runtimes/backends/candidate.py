"""What parity and benchmark hold against eager PyTorch: a variant on a backend with its options, and a name for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mer_export import machine
from mer_export.bundle import WEIGHTS, Bundle, Variant
from mer_export.errors import NotAvailableError
from runtimes.backends.session import Session, SessionOptions
from runtimes.backends.table import known_backends, open_session, survey

EAGER = "torch"
"""The backend that runs the bundle's own weights."""
SESSION_SIZE = 2.5
"""Bytes that a loaded candidate may take for each byte of the weights: OpenVINO keeps packed ones beside its own."""

Way = TypeVar("Way")


@dataclass(frozen=True)
class Candidate:
    """`reason` says why this machine cannot run it; None where it can."""

    variant: Variant | None
    backend: str
    options: SessionOptions
    reason: str | None = None

    @property
    def runtime(self) -> str:
        """Backend with what differs from its defaults: `openvino bf16`, `onnxruntime cuda`, `onnxruntime stages`."""
        device = "" if self.options.device == "cpu" else self.options.device
        graph = "graph" if self.options.cuda_graph else ""
        again = "afresh" if self.options.extra.get("reuse") is False else ""
        stages = "stages" if self.variant and self.variant.stages else ""
        return " ".join(part for part in (self.backend, self.options.lowered, device, graph, stages, again) if part)

    @property
    def name(self) -> str:
        return f"{self.runtime}: {self.variant.name if self.variant else 'eager'}"

    @property
    def format(self) -> str:
        return self.variant.format if self.variant else "eager"

    @property
    def precision(self) -> str:
        """The precision it computes in, which decides the rule it is judged by."""
        return self.options.lowered or (self.variant.precision if self.variant else "fp32")

    @property
    def family(self) -> tuple[str, ...]:
        """Equal for candidates that differ by bucket only."""
        batch = str(self.variant.batch) if self.variant else "any"
        return (self.runtime, self.format, self.precision, batch)

    @property
    def is_eager(self) -> bool:
        return self.variant is None and self.options.device == "cpu"

    def open(self, bundle: Bundle) -> Session:
        """Loads it; raises as `open_session`."""
        return open_session(bundle, self.variant, self.backend, self.options)


def eager(threads: int | None = None) -> Candidate:
    """The reference: PyTorch on the CPU with the bundle's own weights."""
    return Candidate(None, EAGER, SessionOptions(threads=threads))


def find_candidates(bundle: Bundle, threads: int | None = None) -> list[Candidate]:
    """Everything in a bundle on every backend, eager first, with the reason where this machine cannot run it."""
    return [
        Candidate(c.variant, c.backend, replace(c.options, threads=threads), reason) for c, reason in survey(bundle)
    ]


def find_graphs(bundle: Bundle, threads: int | None = None) -> list[Candidate]:
    """Every candidate on CUDA that can be captured, as a CUDA graph.

    Raises:
        NotAvailableError: none of them runs on this machine.
    """
    found = [
        replace(c, options=replace(c.options, extra={"cuda_graph": True}))
        for c in find_candidates(bundle, threads)
        if c.options.device == "cuda" and known_backends()[c.backend].captures
    ]
    if all(c.reason for c in found):
        raise NotAvailableError(f"--cuda-graph needs a runtime on CUDA: {found[0].reason}")
    return found


def grouped_reasons(not_run: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(reason, names) of (name, reason) pairs, in order of appearance."""
    groups: dict[str, list[str]] = {}
    for name, reason in not_run:
        groups.setdefault(reason, []).append(name)
    return list(groups.items())


def in_memory(bundle: Bundle, ways: Sequence[Way], sessions: int = 1, beside: int = 0) -> list[list[Way]]:
    """Groups of ways to run a bundle that memory can hold loaded at the same time, at least one in each.

    Args:
        bundle: what they run.
        ways: in the order to keep.
        sessions: of each way.
        beside: sessions that are loaded with every group.
    """
    free = machine.available_bytes()
    each = SESSION_SIZE * bundle.manifest.files[WEIGHTS].size
    most = max(1, int((free / each - beside) / sessions)) if free else max(1, len(ways))
    return [list(ways[i : i + most]) for i in range(0, len(ways), most)] or [[]]
