"""Commands that run a bundle or ready it for that: `mer doctor`, `export`, `infer`, `serve` and `triton`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mer_export.bundle import Bundle
from mer_export.console import (
    Batch,
    BundleArg,
    CudaGraph,
    DataFormat,
    DataOpt,
    Device,
    DryRun,
    Emotions,
    Force,
    FormatOfData,
    Formats,
    GoalOpt,
    Json,
    Outside,
    Overflow,
    Precision,
    Precisions,
    Quiet,
    Runtime,
    Sets,
    SplitOfData,
    StrictFeatures,
    Threads,
    Trust,
    Verbose,
    emit,
    emit_plan,
    refuse_without,
    say_unless,
)
from mer_export.errors import UsageError
from mer_export.progress import progress_unless
from mer_export.terminal import columns, summary_line

With = Annotated[
    str | None, typer.Option("--with", metavar="COLUMNS", help="Further columns: split, gold (what the data say).")
]
Bundles = Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundle directories.")]


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
    formats: Formats = None,
    precisions: Precisions = None,
    seq_len: Annotated[list[str] | None, typer.Option("--seq-len", metavar="DIM=N", help="Fixed lengths.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Data whose lengths decide the buckets.")] = None,
    most: Annotated[
        int | None, typer.Option("--max-variants", min=1, help="With --plan: buckets at most; default 4.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=0, help="Fixed batch size; 0 dynamic where possible.")] = 0,
    opset: Annotated[int, typer.Option("--opset", help="ONNX opset.")] = 20,
    stages: Annotated[
        bool, typer.Option("--stages", help="Export the network's stages apart, where it has some (facialmmt).")
    ] = False,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option("--device", help="ONNX: the form for the CPU, or for CUDA graphs.")
    ] = "cpu",
    data: DataOpt = None,
    data_format: FormatOfData = None,
    split: SplitOfData = None,
    outside: Outside = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="With --plan: threads of one call; default 1.")
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option("--keep-fp32", metavar="MODULE", help="A module that a reduced precision leaves in fp32."),
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(
            "--within",
            metavar="POINTS",
            min=0,
            help="Choose those modules on --data: points of the metric to lose, and percent of labels to change.",
        ),
    ] = None,
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
    from mer_export.data.bundle_data import bundle_spec
    from mer_export.data.open import stream_samples
    from mer_export.exporters import onnx_file as single
    from mer_export.exporters.export import export_variant, planned, requests
    from runtimes.debug.mixed import search
    from runtimes.features.completed import encoders_of, split_samples
    from runtimes.speed import planning

    refuse_without("--plan", plan is not None, {"--max-variants": most, "--threads": threads})
    refuse_without("--data", data is not None, {"--split": split})
    read = {"--data-format": data_format, "--outside": outside or None}
    refuse_without("--data", bool(data or plan), read)
    opened, say = Bundle.open(bundle), say_unless(quiet)
    data_format, split = data_format or "auto", split or "test"
    formats, precisions = formats or ["onnx"], precisions or ["fp32"]
    contract, found = opened.manifest.contract, None
    buckets = [contract.parse_bucket(s) for s in seq_len] if seq_len else contract.buckets
    jobs = requests(opened, formats, precisions, [(b, batch) for b in buckets], batch, opset, stages, device)
    if plan:
        if seq_len:
            raise UsageError("--plan chooses the lengths: leave --seq-len out")
        spec = bundle_spec(opened, plan, data_format, outside=outside)
        with encoders_of(opened) as through:
            seen = stream_samples(plan, spec, opened.manifest.task.labels, through=through)
            wanted_of = (most or 4, plan.name, formats[0], precisions[0], batch, threads or 1)
            found = planning.make_plan(opened, seen, *wanted_of, say)
        sizes = [(b.lengths, b.batch) for b in found.buckets]
        jobs = requests(opened, formats, precisions, sizes, batch, opset, stages, device)
        if dry_run:
            return emit(found.model_dump(), as_json, lambda: [found.page()])
        say(found.page())
        found.save(opened)
    if onnx_file:
        single.check(onnx_file, jobs, stages, force)
    example = None if data is None else split_samples(opened, data, data_format, split, outside)
    reduced = [p for _, p, *_ in jobs if p != "fp32"]
    if (keep_fp32 or within is not None) and not reduced:
        raise UsageError("--keep-fp32 and --within are of a reduced precision: pass --precision int8 or fp16 too")
    if within is not None and (example is None or keep_fp32):
        raise UsageError("--within chooses what stays in fp32 on data: pass --data, and leave --keep-fp32 out")
    if dry_run:
        how = partial(planned, opened, opset=opset, force=force, stages=stages, device=device, keep_fp32=keep_fp32)
        made_of = "random values" if example is None else f"{len(example)} samples of {split}"
        variants = {wanted.name: state for wanted, state in map(how, jobs)}
        plan_of = {"bundle": str(bundle), "opset": opset, "batch": batch, "device": device, "examples": made_of}
        plan_of |= {"onnx_file": str(onnx_file)} if onnx_file else {}
        return emit_plan("export", plan_of | {"variants": variants}, as_json)
    made = []
    with progress_unless(quiet).over("export", len(jobs), "variant") as shown:
        for name, precision, lengths, size in jobs:
            shown.begin(f"{name} {precision} {lengths.name}")
            kept, noted = keep_fp32, {}
            if within is not None and precision != "fp32":
                wanted, _ = planned(opened, (name, precision, lengths, size), opset, force, stages, device)
                found_list = search(opened, wanted, example or [], within, progress_unless(quiet))
                kept, noted = found_list.keep_fp32, {"within": found_list.model_dump()}
            made.append(
                export_variant(
                    *(opened, name, lengths, size, precision, opset, force),
                    example=example,
                    stages=stages,
                    device=device,
                    keep_fp32=kept,
                    noted=noted,
                )
            )
    if onnx_file:
        single.write(opened, made[0], onnx_file)
    emit([v.model_dump() for v in made], as_json, lambda: (v.name for v in made))
    return None


def infer(
    bundle: BundleArg,
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Data set in any readable format; several with --shards."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.")] = None,
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
    live: Annotated[
        bool, typer.Option("--live", help="Utterances come one a line on standard input, each is answered at once.")
    ] = False,
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="With --live: the last N utterances alone are heard.")
    ] = None,
    revise: Annotated[
        int | None,
        typer.Option("--revise", min=0, help="With --live: earlier answers that are given anew; default all."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="With --live: keeps the dialogues for the next start.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Label every utterance: JSONL, CSV or Parquet by the ending of --out, in the order of the input; `-o -` prints."""
    from mer_export.data.word_vectors import emotion_table
    from runtimes import inputs
    from runtimes.pipeline import How, Reading

    kind: inputs.Kind = "live" if live else "blocks" if shards or cluster else "file"
    of_data = {"INPUT": source, "--split": split, "--with": beside, "--set": sets, "--force": force}
    of_data |= {"--strict-features": strict_features, "--data-format": None if data_format == "auto" else data_format}
    of_blocks = {"--shards": shards, "--cluster": cluster, "--block": block}
    of_live = {"--window": window, "--revise": revise, "--state": state}
    inputs.refuse_unread(kind, {"data": of_data, "blocks": of_blocks, "live": of_live})
    columns_beside = tuple(name.strip() for name in beside.split(",")) if beside else ()
    how = How(
        *(runtime, device, threads, batch, precision, goal, cuda_graph, overflow, columns_beside),
        shared=emotion_table(emotions),
        strict_features=strict_features,
        trust=trust,
    )
    reading = Reading(source or (), data_format, sets or (), outside, split)
    say, progress = say_unless(quiet), progress_unless(quiet)
    asked: inputs.Input
    if kind == "live":
        from runtimes.live.command import Live

        asked = Live(bundle, how, out, window, revise, state, outside, say)
    elif not source or out is None:
        raise UsageError("name the INPUT and --out FILE, or pass --live to answer utterances from standard input")
    elif kind == "blocks":
        from runtimes.scale.command import Blocks, Spread

        asked = Blocks(bundle, how, reading, out, Spread(shards, cluster, block or Spread.block), force, progress)
    else:
        asked = inputs.FileInput(bundle, how, reading, out, force, progress, say)
    asked.check()
    if dry_run:
        return emit_plan("infer", asked.plan(), as_json)
    found = asked.answer()
    # Standard output carries the predictions or the summary, never both.
    return emit(found, as_json, lambda: [_in_a_line(found)], err=asked.prints)


def _in_a_line(found: dict[str, Any]) -> str:
    """What came of an input, as a person reads it."""
    said = {n: v for n, v in found.items() if n not in ("out", "foreign_features")}
    said |= {"variants": " ".join(found["variants"])} if "variants" in found else {}
    return f"{found['out']}: {summary_line(said)}" if "out" in found else summary_line(said)


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
    dialogues: Annotated[
        int, typer.Option("--dialogues", min=1, help="Live dialogues at a time; more get 503.")
    ] = 1024,
    dialogue_idle: Annotated[
        float,
        typer.Option("--dialogue-idle", min=0.001, help="Seconds after which a live dialogue that rests is over."),
    ] = 3600.0,
    dialogue_memory: Annotated[
        int, typer.Option("--dialogue-memory", min=1, help="MiB that all live dialogues hold; more get 503.")
    ] = 256,
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="The last N utterances of a live dialogue alone are heard.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="Keeps live dialogues for the next start.")
    ] = None,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Serve bundles over HTTP: Open Inference Protocol v2, dialogues as JSON, a page to try them on.

    Prints its address when it answers. SIGTERM or Ctrl-C ends it, once what was accepted is answered.
    """
    import logging

    from runtimes.live import dialogues as dialogue_limits
    from runtimes.pipeline import How
    from runtimes.serve import journal
    from runtimes.serve.server import Limits, Place, read_token, serve_until_told
    from runtimes.serve.talk import Options

    journal.start(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    how = How(runtime, device, threads, batch, precision, goal, overflow=overflow, workers=workers, trust=trust)
    place = Place(host, port, read_token(token_file) if token_file else None, no_token)
    kept = dialogue_limits.Limits(dialogues, dialogue_idle, dialogue_memory << 20)
    live = Options(kept, window, state)
    serve_until_told(bundles, how, Limits(max_body << 20, deadline, queue), place, typer.echo, live)


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
