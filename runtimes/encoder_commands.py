"""`mer encoder`, `features` and `attach`: an encoder made of somebody's folder, used, and taken along by a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mer_export import faults
from mer_export.bundle import Bundle
from mer_export.console import (
    Batch,
    BundleArg,
    DataFormat,
    Device,
    DryRun,
    Force,
    Formats,
    Json,
    Out,
    Outside,
    Precision,
    Precisions,
    Quiet,
    Runtime,
    Sets,
    Threads,
    Trust,
    Verbose,
    emit,
    emit_plan,
    say_unless,
)
from mer_export.progress import progress_unless
from mer_export.terminal import outline


def encoder(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of the transformers package, an ONNX or TorchScript file (--recipe), a checkpoint of "
            "vq-wav2vec (--dictionary), MTCNN's pnet.pt, rnet.pt and onet.pt, a facialmmt bundle with a face network, "
            "or a signal: egemaps, egemaps_lld, log_mel, mfcc."
        ),
    ],
    out: Out,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", min=0, help="Layer to read; several side by side. Default the last.")
    ] = None,
    stack: Annotated[
        bool, typer.Option("--stack", help="A vector of a text for each --layer, one below the other, as cmerc reads.")
    ] = False,
    pooling: Annotated[
        Literal["mean", "first", "last", "none"] | None,
        typer.Option("--pooling", help="One vector of all states, or none: the sequence. Default as the folder says."),
    ] = None,
    unit: Annotated[
        bool | None, typer.Option("--unit/--no-unit", help="Bring vectors to unit length; default as the folder says.")
    ] = None,
    every: Annotated[int | None, typer.Option("--every", min=1, help="States that are averaged into one.")] = None,
    window: Annotated[
        float | None, typer.Option("--window", metavar="SECONDS", help="Sound read together; part of what it is.")
    ] = None,
    longest: Annotated[int | None, typer.Option("--longest", metavar="TOKENS", help="Where a text is cut.")] = None,
    lengths: Annotated[
        list[int] | None, typer.Option("--length", min=1, help="Tokens or states that a file is made for; repeatable.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="YAML", help="What goes into a file and what comes out of it.")
    ] = None,
    dictionary: Annotated[
        Path | None, typer.Option("--dictionary", help="dict.txt of Speech-BERT, for a speech tokenizer.")
    ] = None,
    output: Annotated[
        Literal["features", "expressions"] | None,
        typer.Option("--output", help="Of a face network; default features."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            help="Samples per second of a signal; of vq-wav2vec correct (16 000), or faithful: 22 050 as the original.",
        ),
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Setting of a signal.")] = None,
    formats: Formats = None,
    precisions: Precisions = None,
    name: Annotated[str | None, typer.Option("--name", help="What data sets call it; default the folder's.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of the weights, as their publisher names it.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of the weights, as their publisher states it.")
    ] = None,
    faces: Annotated[
        Path | None, typer.Option("--faces", metavar="DETECTOR", help="Of pictures read the main face that this finds.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option("--margin", min=0, help="Part of itself by which the side of a face grows; default 0.2."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Pictures of a clip that are read; default 8.")
    ] = None,
    fps: Annotated[float | None, typer.Option("--fps", min=0.001, help="Pictures a second instead.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a TorchScript file that does more than our exports, whoever made it.")
    ] = False,
    force: Force = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make an encoder: a bundle that turns text, sound or pictures into features without PyTorch."""
    from mer_export.exporters.encoders.make import make

    asked = {
        "layer": layers,
        "stack": stack or None,
        "pooling": pooling,
        "unit": unit,
        "every": every,
        "window": window,
        "longest": longest,
        "length": lengths,
        "recipe": recipe,
        "dictionary": dictionary,
        "output": output,
        "rate": rate,
        "set": sets,
        "format": formats,
        "precision": precisions,
        "name": name,
        "revision": revision,
        "licence": licence,
        "faces": faces,
        "margin": margin,
        "frames": frames,
        "fps": fps,
        "trust": trust or None,
    }
    settings = {n: v for n, v in asked.items() if v not in (None, [])}
    with faults.at(out):
        said = make(source, out, settings, force, progress_unless(quiet))
    emit(said, as_json, lambda: outline(said))


def attach(
    bundle: BundleArg,
    encoders: Annotated[list[str], typer.Argument(metavar="INPUT=ENCODER…", help="Such as text=encoders/minilm.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Take encoders along in a bundle, so that it answers recordings and transcripts by itself."""
    from mer_export.encoders.attached import attach as take_along
    from mer_export.encoders.attached import named

    opened = Bundle.open(bundle)
    with faults.at(bundle):
        take_along(opened, named(encoders), force)
    said = {"bundle": str(bundle), "encoders": opened.manifest.encoders}
    emit(said, as_json, lambda: outline(said))


def features(
    source: Annotated[
        Path, typer.Argument(metavar="CLIPS", help="Table, JSON lines, Parquet or folder of recordings.")
    ],
    out: Out,
    encoders: Annotated[
        list[str], typer.Option("--encoder", metavar="INPUT=ENCODER", help="Such as audio=encoders/hubert; repeatable.")
    ],
    runtime: Runtime = None,
    precision: Precision = None,
    batch: Batch = None,
    device: Device = "cpu",
    threads: Threads = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Threads that decode while encoders compute.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="The first utterance that cannot be read ends it.")] = False,
    data_format: DataFormat = "auto",
    sets: Sets = None,
    outside: Outside = None,
    force: Force = False,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Recordings and transcripts through encoders into a data set to train on. Run again after a kill to go on."""
    from mer_export.data.formats.parquet.rows import new_file
    from mer_export.encoders.attached import named
    from runtimes.backends.session import SessionOptions
    from runtimes.features.clips import open_clips
    from runtimes.features.parts import goes_on
    from runtimes.features.run import Request, make_features, preview

    chosen = named(encoders, trust)
    data = open_clips(source, data_format, sets or (), outside, say_unless(quiet))
    how = {"backend": runtime, "options": SessionOptions(device, threads), "batch": batch, "precision": precision}
    request = Request(data, chosen, new_file(out, force, goes_on), workers, strict, force, how)
    if dry_run:
        return emit_plan("features", preview(request), as_json)
    summary = make_features(request, progress_unless(quiet))
    emit(summary.said(), as_json, summary.lines)
    return None
