"""The `mer` command: parse, call, render. Every command reads a bundle or adds to one.

Commands stand with the package that they call (`train/commands.py`, `train/data_commands.py`, `runtimes/commands.py`);
here are those that need both or neither, the order of all, and how errors end. What a command needs is imported when it
runs, so that `mer --help` answers at once.

Data goes to standard output, progress and errors to standard error. Exit codes: 0 ok, 1 internal error, 2 usage or
input, 3 parity failed, 4 performance gate failed, 5 not available on this machine, 6 bundle corrupt or incompatible,
7 unsupported combination.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

# Nothing here is instrumented by plugins of pydantic, and looking for some opens every installed package.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer

from mer_export import __version__, faults
from mer_export.bundle import Bundle
from mer_export.console import (
    Batch,
    BundleArg,
    Data,
    DataFormat,
    Device,
    DryRun,
    Emotions,
    Force,
    GoalOpt,
    Json,
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
    drawing,
    emit,
    emit_plan,
    refuse_without,
    say_unless,
)
from mer_export.errors import NotAvailableError, UsageError
from mer_export.outlets import open_outlets
from mer_export.progress import progress_unless
from runtimes import commands as runtime_commands
from runtimes import debug_commands, deploy_commands, encoder_commands, hub_commands, measuring_commands
from train import commands as train_commands
from train import data_commands

if TYPE_CHECKING:
    from mer_export.data.samples import Sample
    from runtimes.predict.comparison import Comparison
    from runtimes.predict.predictor import Predictor

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Multimodal emotion recognition from research code to production: "
    "train or import, export, infer, prove parity, benchmark.",
)


def list_(as_json: Json = False) -> None:
    """Systems, variants, presets, export formats, runtimes and data formats."""
    from runtimes import inventory
    from train.config import PRESETS
    from train.experiments.experiment import NAMES

    known = inventory.collect(PRESETS, NAMES)
    emit(known, as_json, lambda: inventory.lines(known))


def verify(bundle: BundleArg, as_json: Json = False) -> None:
    """Check every checksum of a bundle."""
    opened = Bundle.open(bundle)
    files = opened.verify()
    m = opened.manifest
    result = {"bundle": str(bundle), "system": m.system, "files": files, "variants": [v.name for v in m.variants]}
    result |= {"pending": opened.pending}
    if opened.pending:
        typer.echo(f"{bundle}: a change was cut short, the next command that writes finishes it", err=True)
    emit(result, as_json, lambda: [f"{bundle}: {m.system}, {files} files, {len(m.variants)} variants, all intact"])


def eval_(
    bundle: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Bundle directories; of several each is compared with the first."),
    ],
    data: Annotated[Path, typer.Option("--data", help="Labelled data set.")],
    split: Split = "test",
    data_format: DataFormat = "auto",
    runtime: Runtime = None,
    semantics: Annotated[
        Literal["single", "batch"], typer.Option("--semantics", help="batch: as published, torch only.")
    ] = "single",
    batch: Batch = None,
    device: Device = "cpu",
    threads: Threads = None,
    precision: Precision = None,
    goal: GoalOpt = None,
    overflow: Overflow = "error",
    missing: Annotated[
        str | None,
        typer.Option("--missing-rate", metavar="RATES", help="Drop steps: 0.3, 0.0:1.0:0.1 or text,audio,vision."),
    ] = None,
    emotions: Emotions = None,
    strict_features: StrictFeatures = False,
    sets: Sets = None,
    outside: Outside = None,
    rounds: Annotated[
        int | None,
        typer.Option("--resamples", min=100, help="Of bootstrap and permutation test of several; default 10000."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the resamples; default 0.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also as a file: a page .html with pictures, .md or .json.")
    ] = None,
    dry_run: DryRun = False,
    trust: Trust = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Metrics and classes of bundles on labelled data; over missing rates they also go into the bundle's report."""
    from mer_export.data.word_vectors import emotion_table
    from runtimes.evaluation import Labelled, measured, metric_lines
    from runtimes.pages.evaluation import require_form, write_evaluation
    from runtimes.pipeline import How
    from runtimes.predict.robustness import parse_rates, run_robustness

    refuse_without("several bundles", len(bundle) > 1, {"--resamples": rounds, "--seed": seed})
    published = semantics == "batch"
    if missing is not None and (out or published):
        other = f"--out {out}" if out else "--semantics batch"
        raise UsageError(f"--missing-rate measures in single semantics, into the bundle's report: leave {other} out")
    rates = None if missing is None else parse_rates(missing)
    if out is not None:
        require_form(out)
    shared = emotion_table(emotions)
    if published:
        _only_torch(runtime, precision, goal, overflow, shared)
        runtime = "torch"
    if len(bundle) > 1 and (published or missing is not None):
        raise UsageError("several bundles are compared in single semantics and on complete data: name one bundle")
    how = How(
        *(runtime, device, threads, batch, precision, goal),
        overflow=overflow,
        shared=shared,
        strict_features=strict_features,
        trust=trust,
    )
    labelled = Labelled(how, data, data_format, split, outside, sets or (), say_unless(quiet))
    first, where = str(bundle[0]), {"split": split, "semantics": semantics}
    if dry_run:
        plans = {str(p): labelled.previewed(p) for p in bundle}
        asked: dict[str, Any] = {"data": str(data)} | where
        told = asked | {"bundles": plans} if len(bundle) > 1 else {"bundle": first} | asked | plans[first]
        return emit_plan("eval", told, as_json)
    result: dict[str, Any] | Comparison
    if len(bundle) > 1:
        result = labelled.compared(bundle, rounds or 10_000, seed or 0)
        emit(result.model_dump(mode="json"), as_json, result.lines)
    else:
        predictor, samples, arrays = labelled.opened(bundle[0])
        with predictor:
            if rates is not None:
                report = run_robustness(predictor, samples, rates, arrays, split, progress_unless(quiet))
                report.save(predictor.bundle)
                return emit(report.model_dump(), as_json, lambda: report.page().splitlines())
            found = _published(predictor, samples, batch) if published else measured(predictor, samples)
        result = {"bundle": first} | where | {"runtime": predictor.backend} | found
        emit(result, as_json, lambda: metric_lines(result))
    if out is not None:
        write_evaluation(result, out)
    return None


def _only_torch(runtime: str | None, precision: str | None, goal: str | None, overflow: str, shared: object) -> None:
    """Raises UsageError where what is asked for does not go with the published semantics."""
    if shared:
        raise UsageError("--emotions goes with --semantics single")
    if overflow != "error":
        raise UsageError(f"--semantics batch reads items as long as they are: leave --overflow {overflow} out")
    asked = [v for v in (runtime, precision, goal) if v not in (None, "torch", "fp32")]
    if asked:
        raise UsageError(f"--semantics batch runs in PyTorch only: pass --runtime torch, not {' in '.join(asked)}")


def _published(predictor: Predictor, samples: Sequence[Sample], batch: int | None) -> dict[str, Any]:
    from runtimes.backends.table import backend_problem
    from runtimes.evaluation import dumped
    from train.evaluate import evaluate_published

    options = predictor.options
    if problem := backend_problem(predictor.backend, options):
        raise NotAvailableError(problem)
    samples = [s.read for s in samples]
    predictor.features.add(samples)
    predictor.features.tell(predictor.strict_features)
    found = evaluate_published(predictor.bundle, samples, batch or 16, options.device, options.threads)
    return {
        "metrics": found.metrics,
        "classes": dumped(found.classes()),
        "precision": "fp32",
        **predictor.features.summary(),
    }


def experiment(
    name: Annotated[str, typer.Argument(help="An experiment of `mer list`, or a file NAME.yaml.")],
    data: Data,
    out: Out,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="AXIS=V,V", help="Other values of an axis: seed=1,2.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="[NAME:]A.B=C", help="Override a value of every recipe, or of one step or model."
        ),
    ] = None,
    outside: Outside = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Bundles that are trained side by side.")] = 1,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train and measure a paper's experiment: a bundle per cell of its grid, and its table. Run it again to go on."""
    from train.experiments.experiment import load_experiment, plan

    planned = plan(load_experiment(name, grid or ()), data, out, sets or (), outside)
    if dry_run:
        from train.fit import preview

        plans = {str(j.folder): preview(j.config, data, out / j.folder, force) for j in planned.rounds[0][:1]}
        trained = [j.title for jobs in planned.rounds for j in jobs]
        said = {"out": str(out), "title": planned.title, "trained": trained, "cells": len(planned.cells), **plans}
        return emit_plan("experiment", said, as_json)
    from mer_export.experiment import RESULT
    from runtimes.pages.experiment import write_experiment
    from train.experiments.run import run

    result = run(planned, data, out, progress_unless(quiet), jobs, force)
    with drawing(out / f"{RESULT}.html"):
        write_experiment(result, out)
    emit(result.model_dump(mode="json"), as_json, lambda: result.markdown().splitlines())
    result.refuse_gaps()
    return None


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory for data, bundle and report.")] = Path("demo"),
    force: Force = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """The whole path on a synthetic conversation corpus: train, export, infer, parity, bench, report."""
    corpus, bundle, say = out / "data", out / "bundle", say_unless(quiet)
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to run the demo again, or another --out")
    say("1/6 synthetic dialogues in the authors' MELD file format")
    data_commands.synth("cmerc", corpus, sets=["text_dim=32", "audio_dim=24", "vision_dim=16"], force=force)
    say("2/6 training cmerc with calibration, contrast and curriculum")
    train_commands.train("cmerc", corpus, bundle, preset="sample/demo", force=force, quiet=quiet)
    say("3/6 exporting")
    for formats, lengths in ((["onnx"], None), (["torchscript", "exported_program", "tensorrt"], ["utterances=16"])):
        runtime_commands.export(bundle, formats, seq_len=lengths, data=corpus, quiet=quiet)
    say("4/6 labelling the test split")
    runtime_commands.infer(
        bundle, [str(corpus)], out / "predictions.jsonl", split="test", overflow="window", force=force, quiet=quiet
    )
    say("5/6 parity of every variant with PyTorch")
    measuring_commands.parity(bundle, corpus, quiet=quiet)
    say("6/6 latency of every variant against PyTorch")
    measuring_commands.bench(bundle, corpus, batches=[1, 16], rounds=7, quiet=quiet)
    typer.echo(f"open {bundle / 'reports' / 'report.html'}")


COMMANDS: dict[str, Callable[..., None]] = {
    "doctor": runtime_commands.doctor,
    "list": list_,
    "verify": verify,
    "inspect": data_commands.inspect,
    "synth": data_commands.synth,
    "init": train_commands.init,
    "train": train_commands.train,
    "crossval": train_commands.crossval,
    "experiment": experiment,
    "difficulty": train_commands.difficulty,
    "import": train_commands.import_,
    "encoder": encoder_commands.encoder,
    "features": encoder_commands.features,
    "attach": encoder_commands.attach,
    "export": runtime_commands.export,
    "infer": runtime_commands.infer,
    "eval": eval_,
    "parity": measuring_commands.parity,
    "bench": measuring_commands.bench,
    "tune": measuring_commands.tune,
    "serve": runtime_commands.serve,
    "triton": runtime_commands.triton,
    "package": deploy_commands.package,
    "card": hub_commands.card,
    "push": hub_commands.push,
    "pull": hub_commands.pull,
    "demo": demo,
}
"""In the order of `mer --help`."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(data_commands.app, name="data")
app.add_typer(debug_commands.app, name="debug")


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    if version:
        typer.echo(f"mer {__version__}")
        raise typer.Exit
    if debug:
        os.environ["MER_DEBUG"] = "1"
    if quiet:
        inner = {"data": {"synth": {"quiet": True}}, "debug": {"parity": {"quiet": True}}}
        context.default_map = {name: {"quiet": True} for name in COMMANDS} | inner


def main() -> None:
    """Runs the command line; errors become one sentence and an exit code."""
    open_outlets()
    try:
        code = _run()
        sys.stdout.flush()
    except Exception as error:
        code = _fail(error)
    sys.exit(code)


def application(words: Sequence[str]) -> typer.Typer:
    """The command line for these words: with the one command that they name, as making all takes longer than many run.

    Whoever asks for help, or for a command that there is not, gets all of them.
    """
    asked = next((word for word in words if not word.startswith("-")), None)
    if asked not in COMMANDS:
        return app
    lean = copy.copy(app)
    lean.registered_commands = [c for c in app.registered_commands if c.name == asked]
    lean.registered_groups = []
    return lean


def _run() -> int:
    # What was imported is no garbage: looks for it took a tenth of the start.
    gc.freeze()
    try:
        application(sys.argv[1:])()
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        if stop.code == faults.INTERRUPTED:
            typer.echo("mer: interrupted", err=True)
        return stop.code or 0
    return 0


def _fail(error: Exception) -> int:
    if os.environ.get("MER_DEBUG"):
        raise error
    known = faults.explain(error)
    sentence = known or f"internal error: {type(error).__name__}: {error} (mer --debug shows where)"
    typer.echo(f"mer: {sentence}", err=True)
    return known.exit_code if known else 1


if __name__ == "__main__":
    main()
