"""A file runs on the device that it is loaded for, whichever one it was exported on.

`meta` is a device without memory: every operator refuses to take a tensor of it beside one of the CPU, as it does on
CUDA, so a graph that makes a tensor where it was traced does not run there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import Once
from mtee_bundles import export_mtee
from small_bundle import export_all
from small_emt import export_emt
from small_networks import NETWORKS, job_of
from small_tab import export_tab

from mer_export.bundle import Bundle
from mer_export.exporters import exported_program, torchscript
from mer_export.exporters.export_job import ExportJob
from runtimes.backends.eager import TorchSession
from runtimes.backends.exported_program import ExportedProgramSession
from runtimes.backends.session import Artefact, SessionOptions
from runtimes.backends.torchscript import TorchScriptSession

META = SessionOptions(device=cast(Any, "meta"))
FORMATS: dict[str, tuple[Any, type[TorchSession]]] = {
    "torchscript": (torchscript, TorchScriptSession),
    "exported_program": (exported_program, ExportedProgramSession),
}
SHARED: dict[str, Callable[[Once], Bundle]] = {
    "cmerc": lambda once: once("cmerc", export_all),
    **{name: partial(export_emt, name=name) for name in ("emt", "mult", "tfr_net")},
    "tab": partial(export_tab, variant="fusion"),
    "mtee": partial(export_mtee, name="eea"),
}
"""A bundle by system that other files of tests export as well: capturing a network as a program takes seconds."""
CAPTURED = NETWORKS if "MER_EVERY_NETWORK" in os.environ else ("facialmmt fusion",)
"""Capturing all of them takes minutes, it is asked for by a variable."""
EARLIER = Path(__file__).parent / "data" / "bundles"


def answer_on_meta(session: TorchSession) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs for three items, all of them on the device."""
    shape = session.shape
    given = [
        torch.zeros(s.shape(3, shape), dtype=getattr(torch, s.dtype), device="meta") for s in session.contract.inputs
    ]
    # The optimiser compares the constants of a graph with each other, which have no values here.
    with torch.no_grad(), torch.jit.optimized_execution(False):
        found = session.module(*given)
    values = found if isinstance(found, tuple) else (found,)
    assert {str(v.device) for v in values} == {"meta"}
    return {s.name: tuple(v.shape) for s, v in zip(session.contract.outputs, values, strict=True)}


@pytest.mark.parametrize(
    ("network", "format"),
    [*((n, "torchscript") for n in NETWORKS), *((n, "exported_program") for n in CAPTURED)],
)
def test_an_export_of_every_network_runs_on_another_device(network: str, format: str, tmp_path: Path) -> None:
    job: ExportJob = job_of(network)
    exporter, kind = FORMATS[format]
    path = tmp_path / exporter.FORMAT.file
    exporter.export(job, path)
    with kind(Artefact(path, job.contract, job.lengths), META) as session:
        assert answer_on_meta(session) == {n: v.shape for n, v in job.reference.items()}


def runs_on_meta(bundle: Bundle, format: str) -> None:
    contract = bundle.manifest.contract
    variant = next(v for v in bundle.manifest.variants if v.format == format)
    with FORMATS[format][1](Artefact(bundle.path(variant.model), contract, variant.lengths), META) as session:
        assert answer_on_meta(session) == {s.name: s.shape(3, variant.lengths) for s in contract.outputs}


@pytest.mark.parametrize("system", SHARED)
def test_a_program_of_every_system_runs_on_another_device(system: str, once: Once) -> None:
    runs_on_meta(SHARED[system](once), "exported_program")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("system", ["cmerc", "emt"])
def test_a_file_that_an_earlier_release_wrote_runs_on_another_device(system: str, format: str) -> None:
    runs_on_meta(Bundle.open(EARLIER / system), format)
