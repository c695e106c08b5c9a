"""Commands that measure a bundle: `mer parity`, `bench` and `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mer_export.bundle import Bundle
from mer_export.console import (
    Atol,
    BundleArg,
    ComparedData,
    CudaGraph,
    DataFormat,
    DataOpt,
    DryRun,
    FormatOfData,
    InPrecision,
    Json,
    Limit,
    OnDevice,
    Outside,
    Quiet,
    Rtol,
    Runtime,
    Split,
    SplitOfData,
    StrictFeatures,
    Threads,
    Trust,
    Verbose,
    drawing,
    emit,
    emit_plan,
    refuse_without,
)
from mer_export.progress import progress_unless

TEST = "test"
Batches = Annotated[list[int] | None, typer.Option("--batch", min=1, help="Repeat for several.")]


def parity(
    bundle: BundleArg,
    data: ComparedData,
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    runtime: Runtime = None,
    device: OnDevice = None,
    precision: InPrecision = None,
    limit: Limit = None,
    atol: Atol = None,
    rtol: Rtol = None,
    threads: Threads = 1,
    strict: Annotated[bool, typer.Option("--strict", help="A variant that cannot run here is a failure.")] = False,
    strict_features: StrictFeatures = False,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do all variants give PyTorch's answers? Exit code 3 if not."""
    from mer_export.agreement.policy import Policy
    from runtimes.backends.way import find_ways, only
    from runtimes.features.completed import split_samples
    from runtimes.pages.report import REPORT, write_report
    from runtimes.parity import run as checks
    from runtimes.parity.report import ParityReport

    opened = Bundle.open(bundle, trust)
    policy = Policy.parse(atol or [], rtol or [])
    ways = only(find_ways(opened, threads, runtime), device, precision)
    samples = split_samples(opened, data, data_format, split, outside)[:limit]
    if dry_run:
        plan = {"bundle": str(bundle), "data": str(data), "split": split}
        return emit_plan("parity", plan | checks.preview(opened, samples, ways, strict_features), as_json)
    part = bool(runtime or device or precision)
    if part:
        # One that cannot be read is said before the candidates run.
        ParityReport.load(opened)
    report = checks.run_parity(
        *(opened, samples, policy, ways, threads),
        source=f"{data.name}, {split}",
        progress=progress_unless(quiet),
        strict_features=strict_features,
    )
    # As it is now: another run may have written what it found meanwhile.
    opened = Bundle.open(bundle, trust)
    report.beside(ParityReport.load(opened) if part else None, opened).save(opened)
    with drawing(bundle / REPORT):
        write_report(opened)
    emit(report.model_dump(mode="json"), as_json, lambda: [report.page()])
    checks.require(report, strict)
    return None


def bench(
    bundle: BundleArg,
    data: DataOpt = None,
    split: SplitOfData = None,
    data_format: FormatOfData = None,
    outside: Outside = None,
    runtime: Runtime = None,
    batches: Batches = None,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Interleaved rounds.")] = 15,
    threads: Threads = 1,
    cuda_graph: CudaGraph = False,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="An earlier bench.json: exit with 4 where a ratio fell.")
    ] = None,
    tolerance: Annotated[
        str | None, typer.Option("--tolerance", help="With --baseline: how much a ratio may fall; default 10%.")
    ] = None,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How fast are all variants, interleaved in one run, against eager PyTorch?"""
    from runtimes.backends.way import find_graphs, find_ways
    from runtimes.features.completed import split_samples
    from runtimes.pages.report import REPORT, write_report
    from runtimes.speed import bench as benchmark
    from runtimes.speed import regression

    _refuse_without_data(data, split, data_format, outside)
    refuse_without("--baseline", baseline is not None, {"--tolerance": tolerance})
    opened = Bundle.open(bundle, trust)
    allowed = regression.parse_tolerance(tolerance or "10%")
    earlier = regression.read_baseline(baseline, opened.manifest.system, threads) if baseline else None
    ways = find_ways(opened, threads, runtime) + (find_graphs(opened, threads, runtime) if cuda_graph else [])
    samples = None if data is None else split_samples(opened, data, data_format or "auto", split or TEST, outside)
    sizes = batches or [1, 16]
    if dry_run:
        plan = {"bundle": str(bundle), "rounds": rounds, "threads": threads}
        return emit_plan("bench", plan | benchmark.preview(opened, samples, sizes, ways), as_json)
    report = benchmark.run_bench(opened, samples, sizes, rounds, threads, ways=ways, progress=progress_unless(quiet))
    found = regression.compare(report, earlier, allowed, str(baseline)) if earlier else None
    result = report.model_dump(mode="json") | ({"against": found.model_dump(mode="json")} if found else {})
    pages = [report.page(), *([regression.markdown(found)] if found else [])]
    emit(result, as_json, lambda: pages)
    # A report that failed must not become the baseline that it was held against.
    own = baseline is not None and baseline.resolve() == (bundle / report.path()).resolve()
    if not (own and found and found.failed):
        report.save(opened)
        with drawing(bundle / REPORT):
            write_report(opened)
    if found:
        regression.require(found)
    return None


def tune(
    bundle: BundleArg,
    data: DataOpt = None,
    split: SplitOfData = None,
    data_format: FormatOfData = None,
    outside: Outside = None,
    batches: Batches = None,
    precisions: Annotated[list[str] | None, typer.Option("--precision", help="Only these; repeatable.")] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="How long it may take; what is left out is named.")
    ] = 2.0,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time variants, runtimes, threads and batch sizes on this machine, for `--goal` of infer and eval."""
    from runtimes.features.completed import split_samples
    from runtimes.speed import tune as tuning

    _refuse_without_data(data, split, data_format, outside)
    opened = Bundle.open(bundle, trust)
    samples = None if data is None else split_samples(opened, data, data_format or "auto", split or TEST, outside)
    source = tuning.RANDOM if data is None else f"{data.name}, {split or TEST}"
    sizes = batches or tuning.BATCHES
    if dry_run:
        plan = {"bundle": str(bundle), **tuning.preview(opened, samples, sizes, precisions, minutes)}
        return emit_plan("tune", plan, as_json)
    found = tuning.run_tune(opened, samples, source, sizes, precisions, minutes, progress_unless(quiet))
    found.save(opened)
    emit(found.model_dump(mode="json"), as_json, lambda: [found.page()])
    return None


def _refuse_without_data(
    data: Path | None, split: str | None, data_format: str | None, outside: list[Path] | None
) -> None:
    said = {"--split": split, "--data-format": data_format, "--outside": outside or None}
    refuse_without("--data", data is not None, said)
