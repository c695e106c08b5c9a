"""Commands that run a bundle or ready it for that: `mer doctor`, `export`, `infer`, `parity`, `bench`, `tune`, `serve`
and `triton`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

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
    InPrecision,
    Json,
    OnDevice,
    Out,
    Outside,
    Overflow,
    Precision,
    Quiet,
    Runtime,
    Sets,
    Split,
    StrictFeatures,
    Threads,
    Trust,
    Verbose,
    emit,
    emit_plan,
    say_unless,
)
from mer_export.errors import UsageError
from mer_export.progress import progress_unless
from mer_export.terminal import columns, summary_line

DataOpt = Annotated[Path | None, typer.Option("--data", help="Data set: a directory or file.")]
With = Annotated[
    str | None, typer.Option("--with", metavar="COLUMNS", help="Further columns: split, gold (what the data say).")
]
Bundles = Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundle directories.")]
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
    onnx_file: Annotated[
        Path | None, typer.Option("--onnx-file", help="Write the variant as one ONNX file too, weights inside.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a bundle's model: one artefact per format, precision and length bucket."""
    from mer_export.data.bundle_data import bundle_samples, bundle_spec
    from mer_export.data.open import stream_samples
    from mer_export.exporters import onnx_file as single
    from mer_export.exporters.export import export_variant, planned, requests
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
    if onnx_file:
        single.check(onnx_file, jobs, stages, force)
    example = None if data is None else bundle_samples(opened, data, data_format, split, outside)
    if dry_run:
        how = partial(planned, opened, opset=opset, force=force, stages=stages, device=device)
        made_of = "random values" if example is None else f"{len(example)} samples of {split}"
        variants = {wanted.name: state for wanted, state in map(how, jobs)}
        plan_of = {"bundle": str(bundle), "opset": opset, "batch": batch, "device": device, "examples": made_of}
        plan_of |= {"onnx_file": str(onnx_file)} if onnx_file else {}
        return emit_plan("export", plan_of | {"variants": variants}, as_json)
    made = []
    with progress_unless(quiet).over("export", len(jobs), "variant") as shown:
        for name, precision, lengths, size in jobs:
            shown.begin(f"{name} {precision} {lengths.name}")
            made.append(
                export_variant(
                    *(opened, name, lengths, size, precision, opset, force),
                    example=example,
                    stages=stages,
                    device=device,
                )
            )
    if onnx_file:
        single.write(opened, made[0], onnx_file)
    emit([v.model_dump() for v in made], as_json, lambda: (v.name for v in made))
    return None


def infer(
    bundle: BundleArg,
    source: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Data set in any readable format; several with --shards.")
    ],
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
    beside: With = None,
    emotions: Emotions = None,
    strict_features: StrictFeatures = False,
    sets: Sets = None,
    outside: Outside = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="Workers; --out is a directory of blocks that goes on.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="[local|ADDRESS]", help="The workers are actors of Ray.")
    ] = None,
    block: Annotated[
        float | None, typer.Option("--block", min=1e-4, help="MiB of input in a block; default 16.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Label every utterance: JSONL, CSV or Parquet by the ending of --out, in the order of the input; `-o -` prints."""
    from mer_export.data.bundle_data import bundle_spec
    from mer_export.data.open import stream_samples
    from mer_export.data.word_vectors import emotion_table
    from runtimes.backends.session import SessionOptions
    from runtimes.features.completed import Completion
    from runtimes.predict import output
    from runtimes.predict.opening import open_predictor
    from runtimes.predict.preview import preview

    columns_beside = [name.strip() for name in beside.split(",")] if beside else []
    if shards or cluster:
        from runtimes.scale.command import Reading, Spread, infer_in_blocks
        from runtimes.scale.desk import How

        how = How(
            *(bundle, runtime, device, threads, batch, precision, goal, cuda_graph, overflow),
            *(tuple(columns_beside), emotion_table(emotions) or None, trust),
        )
        reading = Reading(source, data_format, sets or (), outside, split)
        found = infer_in_blocks(
            *(how, reading, out, Spread(shards, cluster, block or Spread.block), strict_features, force, dry_run),
            progress=progress_unless(quiet),
        )
        if dry_run:
            return emit_plan("infer", found, as_json)
        return emit({"out": str(out), **found}, as_json, lambda: [f"{out}: {_in_a_line(found)}"])
    if block:
        raise UsageError(f"--block {block:g} cuts what --shards or --cluster spread: pass one of them, or leave it out")
    if len(source) > 1:
        raise UsageError(f"{len(source)} inputs are answered in blocks: pass --shards 1, and a directory as --out")
    opened, path = Bundle.open(bundle, trust), Path(source[0])
    spec = bundle_spec(opened, path, data_format, sets or (), outside)
    output.check_out(out)
    if out != output.STDOUT and out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    options = SessionOptions(device, threads, cuda_graph=cuda_graph)
    chosen = open_predictor(
        *(opened, runtime, options, batch, precision, goal),
        say=say_unless(quiet),
        overflow=overflow,
        shared=emotion_table(emotions),
        strict_features=strict_features,
        gold="gold" in columns_beside,
    )
    inside = bool(opened.manifest.encoders)
    completion = Completion.of(opened, goal=goal, backend=runtime, options=options) if inside else None
    with chosen as predictor, completion or nullcontext():
        # Other emotions than the data are labelled with are no reason to refuse the data.
        labels = None if emotions and not predictor.gold else predictor.task.labels
        samples = stream_samples(path, spec, labels, split, completion)
        if dry_run:
            plan = {"bundle": str(bundle), "input": str(path), "out": str(out), "overflow": overflow}
            plan |= preview(predictor, samples)
            return emit_plan("infer", plan | {"data": spec.model_dump(mode="json")}, as_json)
        answers = predictor.predict(samples)
        counts = output.write(answers, out, predictor.task, columns_beside, progress_unless(quiet))
        summary: dict[str, Any] = {**counts, "runtime": predictor.backend, "precision": predictor.precision}
        summary |= {"variants": predictor.answered_by, **predictor.features.summary()}
        summary |= {"unreadable": completion.unreadable} if completion else {}
    # Standard output carries the predictions or the summary, never both.
    emit({"out": str(out), **summary}, as_json, lambda: [f"{out}: {_in_a_line(summary)}"], err=out == output.STDOUT)
    return None


def _in_a_line(summary: dict[str, Any]) -> str:
    said = summary | {"variants": " ".join(summary["variants"])}
    said.pop("foreign_features", None)
    return summary_line(said)


def parity(
    bundle: BundleArg,
    data: Annotated[Path, typer.Option("--data", help="Data set to compare on.")],
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    runtime: Runtime = None,
    device: OnDevice = None,
    precision: InPrecision = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many items.")] = None,
    atol: Annotated[
        list[str] | None,
        typer.Option("--atol", metavar="VALUE", help="Tolerance, such as 1e-4, int8:0.2 or log_prob:1e-4."),
    ] = None,
    rtol: Annotated[list[str] | None, typer.Option("--rtol", metavar="VALUE", help="Its relative part.")] = None,
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
    from mer_export.data.bundle_data import bundle_samples
    from runtimes.backends.way import find_ways, only
    from runtimes.pages.report import write_report
    from runtimes.parity import run as checks
    from runtimes.parity.report import ParityReport

    opened = Bundle.open(bundle, trust)
    policy = Policy.parse(atol or [], rtol or [])
    ways = only(find_ways(opened, threads, runtime), device, precision)
    samples = bundle_samples(opened, data, data_format, split, outside)[:limit]
    if dry_run:
        plan = {"bundle": str(bundle), "data": str(data), "split": split}
        return emit_plan("parity", plan | checks.preview(opened, samples, ways, strict_features), as_json)
    report = checks.run_parity(
        *(opened, samples, policy, ways, threads),
        source=f"{data.name}, {split}",
        progress=progress_unless(quiet),
        strict_features=strict_features,
    )
    report.beside(ParityReport.load(opened) if runtime or device or precision else None, opened).save(opened)
    write_report(opened)
    emit(report.model_dump(mode="json"), as_json, lambda: [report.page()])
    checks.require(report, strict)
    return None


def bench(
    bundle: BundleArg,
    data: DataOpt = None,
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    runtime: Runtime = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Repeat for several.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Interleaved rounds.")] = 15,
    threads: Threads = 1,
    cuda_graph: CudaGraph = False,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="An earlier bench.json: exit with 4 where a ratio fell.")
    ] = None,
    tolerance: Annotated[str, typer.Option("--tolerance", help="How much a ratio may fall.")] = "10%",
    dry_run: DryRun = False,
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
    ways = find_ways(opened, threads, runtime) + (find_graphs(opened, threads, runtime) if cuda_graph else [])
    samples = None if data is None else bundle_samples(opened, data, data_format, split, outside)
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
    if not (own and found and found.slower):
        report.save(opened)
        write_report(opened)
    if found:
        regression.require(found)
    return None


def tune(
    bundle: BundleArg,
    data: DataOpt = None,
    split: Split = "test",
    data_format: DataFormat = "auto",
    outside: Outside = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Repeat for several.")] = None,
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
    from mer_export.data.bundle_data import bundle_samples
    from runtimes.speed import tune as tuning

    opened = Bundle.open(bundle, trust)
    samples = None if data is None else bundle_samples(opened, data, data_format, split, outside)
    source = tuning.RANDOM if data is None else f"{data.name}, {split}"
    sizes = batches or tuning.BATCHES
    if dry_run:
        plan = {"bundle": str(bundle), **tuning.preview(opened, samples, sizes, precisions, minutes)}
        return emit_plan("tune", plan, as_json)
    found = tuning.run_tune(
        opened,
        samples,
        source,
        sizes,
        precisions,
        minutes,
        progress_unless(quiet),
    )
    found.save(opened)
    emit(found.model_dump(mode="json"), as_json, lambda: [found.page()])
    return None


def serve(
    bundles: Bundles,
    host: Annotated[str, typer.Option("--host", help="Where to listen; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Only who sends this file's word as bearer token may ask.")
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Whoever reaches --host may ask.")] = False,
    runtime: Runtime = None,
    precision: Precision = None,
    device: Device = "cpu",
    goal: GoalOpt = None,
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Sessions side by side; default one per core.")
    ] = None,
    batch: Batch = None,
    overflow: Overflow = "error",
    queue: Annotated[int, typer.Option("--queue", min=1, help="Items that may wait; more get 503.")] = 1024,
    deadline: Annotated[
        float, typer.Option("--deadline", min=0.001, help="Seconds until a request without an answer gets 504.")
    ] = 30.0,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="MiB of a request; more get 413.")] = 32,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Serve bundles over HTTP: Open Inference Protocol v2, dialogues as JSON, a page to try them on.

    Prints its address when it answers. SIGTERM or Ctrl-C ends it, once what was accepted is answered.
    """
    import logging

    from runtimes.serve import journal
    from runtimes.serve.models import How
    from runtimes.serve.server import Limits, Place, read_token, serve_until_told

    journal.start(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    how = How(runtime, precision, goal, device, threads, workers, batch, overflow, trust, queue)
    place = Place(host, port, read_token(token_file) if token_file else None, no_token)
    serve_until_told(bundles, how, Limits(max_body << 20, deadline), place, typer.echo)


def triton(
    bundle: BundleArg,
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory: the model repository.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the model that is asked; default that of the bundle's directory.")
    ] = None,
    runtime: Annotated[
        str, typer.Option("--runtime", help="What runs in Triton: onnxruntime, openvino or tensorrt.")
    ] = "onnxruntime",
    precision: Precision = None,
    device: Device = "cpu",
    goal: GoalOpt = None,
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Instances of each model; default one per core.")
    ] = None,
    batch: Batch = None,
    force: Force = False,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a model repository for NVIDIA Triton: a model for each bucket, and a router that takes unpadded items."""
    from runtimes.backends.session import SessionOptions
    from runtimes.triton import repository
    from runtimes.triton.plan import plan

    say = say_unless(quiet)
    opened, options = Bundle.open(bundle, trust), SessionOptions(device, threads)
    made = plan(opened, name, runtime, options, batch, precision, goal, workers, say)
    for note in made.notes:
        say(note)
    if dry_run:
        return emit_plan("triton", {"bundle": str(bundle), "out": str(out), **made.about}, as_json)
    repository.write(made, out, force)
    asked, models = made.about["router"], list(made.about["models"])
    lines = [f"{out}: {asked} asks {', '.join(models)}", f"tritonserver --model-repository={out.resolve()}"]
    emit({"out": str(out), **made.about, "notes": made.notes}, as_json, lambda: lines)
    return None
