"""Commands that run a bundle or ready it for that: `mer doctor`, `export`, `infer`, `parity`, `bench` and `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mer_export.bundle import Bundle
from mer_export.console import (
    Batch,
    BundleArg,
    DataFormat,
    Device,
    DryRun,
    Emotions,
    Force,
    GoalOpt,
    Json,
    Out,
    Outside,
    Precision,
    Quiet,
    Runtime,
    Sets,
    Split,
    Threads,
    Trust,
    Verbose,
    emit,
    emit_plan,
    say_unless,
)
from mer_export.errors import UsageError
from mer_export.terminal import columns, summary_line

DataOpt = Annotated[Path | None, typer.Option("--data", help="Data set: a directory or file.")]
Overflow = Annotated[
    Literal["error", "window", "truncate"], typer.Option("--overflow", help="What to do with items that are too long.")
]
CudaGraph = Annotated[bool, typer.Option("--cuda-graph", help="On a GPU: capture each shape as a CUDA graph.")]


def doctor(
    require: Annotated[list[str] | None, typer.Option("--require", help="Exit with 5 unless this works.")] = None,
    as_json: Json = False,
) -> None:
    """What is installed here, what works, and why the rest does not."""
    from runtimes import doctor as checks

    report = checks.examine()
    rows = [(c.name, c.status, c.version, c.role, c.detail) for c in report]
    emit(
        [c.model_dump() for c in report],
        as_json,
        lambda: columns(("what", "status", "version", "for", "detail"), rows),
    )
    checks.require(report, require or [])


def export(
    bundle: BundleArg,
    formats: Annotated[list[str] | None, typer.Option("--format", help="Repeat for several; see `mer list`.")] = None,
    precisions: Annotated[list[str] | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")] = None,
    seq_len: Annotated[list[str] | None, typer.Option("--seq-len", metavar="DIM=N", help="Fixed lengths.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Data whose lengths decide the buckets.")] = None,
    most: Annotated[int, typer.Option("--max-variants", min=1, help="With --plan: buckets at most.")] = 4,
    batch: Annotated[int, typer.Option("--batch", min=0, help="Fixed batch size; 0 dynamic where possible.")] = 0,
    opset: Annotated[int, typer.Option("--opset", help="ONNX opset.")] = 20,
    stages: Annotated[
        bool, typer.Option("--stages", help="Export the network's stages apart, where it has some (facialmmt).")
    ] = False,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option("--device", help="ONNX: the form for the CPU, or for CUDA graphs.")
    ] = "cpu",
    data: DataOpt = None,
    data_format: DataFormat = "auto",
    split: Split = "test",
    outside: Outside = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="With --plan: threads of one call.")] = 1,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a bundle's model: one artefact per format, precision and length bucket."""
    from mer_export.data.bundle_data import bundle_samples, bundle_spec
    from mer_export.data.open import stream_samples
    from mer_export.exporters.export import export_variant, requests
    from runtimes.speed import planning

    opened, say = Bundle.open(bundle), say_unless(quiet)
    formats, precisions = formats or ["onnx"], precisions or ["fp32"]
    contract, found = opened.manifest.contract, None
    buckets = [contract.parse_bucket(s) for s in seq_len] if seq_len else contract.buckets
    jobs = requests(opened, formats, precisions, [(b, batch) for b in buckets], batch, opset, stages, device)
    if plan:
        if seq_len:
            raise UsageError("--plan chooses the lengths: leave --seq-len out")
        seen = stream_samples(
            plan, bundle_spec(opened, plan, data_format, outside=outside), opened.manifest.task.labels
        )
        found = planning.make_plan(opened, seen, most, plan.name, formats[0], precisions[0], batch, threads, say)
        sizes = [(b.lengths, b.batch) for b in found.buckets]
        jobs = requests(opened, formats, precisions, sizes, batch, opset, stages, device)
        if dry_run:
            return emit(found.model_dump(), as_json, lambda: [found.page()])
        say(found.page())
        found.save(opened)
    if dry_run:
        variants = [(name, reduced, dict(bucket), size) for name, reduced, bucket, size in jobs]
        return emit_plan(
            "export",
            {"bundle": str(bundle), "opset": opset, "batch": batch, "device": device, "variants": variants},
            as_json,
        )
    example = None if data is None else bundle_samples(opened, data, data_format, split, outside)
    made = []
    for name, precision, lengths, size in jobs:
        variant = export_variant(
            opened,
            name,
            lengths,
            batch=size,
            precision=precision,
            opset=opset,
            force=force,
            example=example,
            stages=stages,
            device=device,
        )
        made.append(variant)
        say(f"exported {variant.name}")
    emit([v.model_dump() for v in made], as_json, lambda: (v.name for v in made))
    return None


def infer(
    bundle: BundleArg,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Data set in any readable format.")],
    out: Out,
    runtime: Runtime = None,
    split: Annotated[str | None, typer.Option("--split", help="One split; default all.")] = None,
    data_format: DataFormat = "auto",
    batch: Batch = None,
    device: Device = "cpu",
    threads: Threads = None,
    cuda_graph: CudaGraph = False,
    precision: Precision = None,
    goal: GoalOpt = None,
    overflow: Overflow = "error",
    emotions: Emotions = None,
    sets: Sets = None,
    outside: Outside = None,
    force: Force = False,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Label every utterance: JSONL, CSV or Parquet by the ending of --out, in the order of the input."""
    from mer_export.data.bundle_data import bundle_spec
    from mer_export.data.open import stream_samples
    from mer_export.data.word_vectors import emotion_table
    from runtimes.backends.session import SessionOptions
    from runtimes.predict import output
    from runtimes.predict.opening import open_predictor

    opened = Bundle.open(bundle, trust)
    spec = bundle_spec(opened, source, data_format, sets or (), outside)
    if dry_run:
        plan = {"bundle": str(bundle), "input": str(source), "out": str(out), "runtime": runtime, "batch": batch}
        plan |= {"precision": precision, "goal": goal}
        return emit_plan("infer", plan | {"overflow": overflow, "data": spec.model_dump(mode="json")}, as_json)
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    say = say_unless(quiet)
    options = SessionOptions(device, threads, cuda_graph=cuda_graph)
    chosen = open_predictor(
        *(opened, runtime, options, batch, precision, goal),
        say=say,
        overflow=overflow,
        shared=emotion_table(emotions),
    )
    with chosen as predictor:
        samples = stream_samples(source, spec, None if emotions else opened.manifest.task.labels, split)
        summary = output.write(predictor.predict(samples), out, predictor.task, say=say)
    emit({"out": str(out), **summary}, as_json, lambda: [f"{out}: {summary_line(summary)}"])
    return None


def parity(
    bundle: BundleArg,
    data: Annotated[Path, typer.Option("--data", help="Data set to compare on.")],
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many items.")] = None,
    atol: Annotated[
        list[str] | None,
        typer.Option("--atol", metavar="VALUE", help="Tolerance, such as 1e-4, int8:0.2 or log_prob:1e-4."),
    ] = None,
    rtol: Annotated[list[str] | None, typer.Option("--rtol", metavar="VALUE", help="Its relative part.")] = None,
    threads: Threads = 1,
    strict: Annotated[bool, typer.Option("--strict", help="A variant that cannot run here is a failure.")] = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do all variants give PyTorch's answers? Exit code 3 if not."""
    from mer_export.agreement.policy import Policy
    from mer_export.data.bundle_data import bundle_samples
    from runtimes.pages.report import write_report
    from runtimes.parity import run as checks

    opened = Bundle.open(bundle, trust)
    samples = bundle_samples(opened, data, data_format, split, outside)[:limit]
    policy = Policy.parse(atol or [], rtol or [])
    report = checks.run_parity(
        opened, samples, policy, threads=threads, source=f"{data.name}, {split}", say=say_unless(quiet)
    )
    report.save(opened)
    write_report(opened)
    emit(report.model_dump(mode="json"), as_json, lambda: [report.page()])
    checks.require(report, strict)


def bench(
    bundle: BundleArg,
    data: DataOpt = None,
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Repeat for several.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Interleaved rounds.")] = 15,
    threads: Threads = 1,
    cuda_graph: CudaGraph = False,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="An earlier bench.json: exit with 4 where a ratio fell.")
    ] = None,
    tolerance: Annotated[str, typer.Option("--tolerance", help="How much a ratio may fall.")] = "10%",
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How fast are all variants, interleaved in one run, against eager PyTorch?"""
    from mer_export.data.bundle_data import bundle_samples
    from runtimes.backends.way import find_graphs, find_ways
    from runtimes.pages.report import write_report
    from runtimes.speed import bench as benchmark
    from runtimes.speed import regression

    opened = Bundle.open(bundle, trust)
    allowed = regression.parse_tolerance(tolerance)
    earlier = regression.read_baseline(baseline, opened.manifest.system, threads) if baseline else None
    ways = find_ways(opened, threads) + (find_graphs(opened, threads) if cuda_graph else [])
    samples = None if data is None else bundle_samples(opened, data, data_format, split, outside)
    report = benchmark.run_bench(opened, samples, batches or [1, 16], rounds, threads, ways=ways, say=say_unless(quiet))
    found = regression.compare(report, earlier, allowed, str(baseline)) if earlier else None
    result = report.model_dump(mode="json") | ({"against": found.model_dump(mode="json")} if found else {})
    pages = [report.page(), *([regression.markdown(found)] if found else [])]
    emit(result, as_json, lambda: pages)
    # A report that failed must not become the baseline that it was held against.
    own = baseline is not None and baseline.resolve() == (bundle / report.path()).resolve()
    if not (own and found and found.slower):
        report.save(opened)
        write_report(opened)
    if found:
        regression.require(found)


def tune(
    bundle: BundleArg,
    data: DataOpt = None,
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Repeat for several.")] = None,
    precisions: Annotated[list[str] | None, typer.Option("--precision", help="Only these; repeatable.")] = None,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time variants, runtimes, threads and batch sizes on this machine, for `--goal` of infer and eval."""
    from mer_export.data.bundle_data import bundle_samples
    from runtimes.speed import tune as tuning

    opened = Bundle.open(bundle, trust)
    samples = None if data is None else bundle_samples(opened, data, data_format, split, outside)
    source = {} if data is None else {"source": f"{data.name}, {split}"}
    found = tuning.run_tune(
        opened, samples, batches=batches or tuning.BATCHES, precisions=precisions, say=say_unless(quiet), **source
    )
    found.save(opened)
    emit(found.model_dump(mode="json"), as_json, lambda: [found.page()])
