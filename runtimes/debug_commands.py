"""Commands that find a fault: `mer debug parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mer_export.bundle import Bundle
from mer_export.console import (
    Atol,
    BundleArg,
    ComparedData,
    DataFormat,
    Json,
    Limit,
    Outside,
    Quiet,
    Rtol,
    Runtime,
    Split,
    Trust,
    Verbose,
    emit,
    refuse_existing,
)
from mer_export.console import InPrecision as Reduced
from mer_export.progress import progress_unless

app = typer.Typer(no_args_is_help=True, help="Find the place of a fault.")


@app.command()
def parity(
    bundle: BundleArg,
    variant: Annotated[str, typer.Argument(help="A variant, or the int8 or fp16 that an fp32 one would not become.")],
    data: ComparedData,
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    runtime: Runtime = None,
    precision: Reduced = None,
    limit: Limit = None,
    atol: Atol = None,
    rtol: Rtol = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the smallest sample that shows it, as .npz.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Which module of a variant makes the first error? Exit code 3 where the variant differs."""
    from mer_export.agreement.policy import Policy
    from runtimes.debug import parity as debugger
    from runtimes.features.completed import split_samples

    opened, policy = Bundle.open(bundle, trust), Policy.parse(atol or [], rtol or [])
    if out:
        refuse_existing(out, force)
    samples = split_samples(opened, data, data_format, split, outside)[:limit]
    report = debugger.debug_parity(
        *(opened, variant, samples, policy, runtime, precision, out), progress=progress_unless(quiet)
    )
    emit(report.model_dump(mode="json"), as_json, lambda: [report.page()])
    debugger.require(report)


@app.callback()
def _several() -> None:
    """Keeps the name of a command where there is only one."""
