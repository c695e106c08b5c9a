"""The `mer` command: parse, call, render. Every command reads a bundle or adds to one.

Data goes to standard output, progress and errors to standard error. Exit codes: 0 ok, 1 internal error, 2 usage or
input, 3 parity failed, 4 performance gate failed, 5 not available on this machine, 6 bundle corrupt or incompatible,
7 unsupported combination.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mer_export import __version__, registry
from mer_export.bundle import CONFIG, Bundle
from mer_export.errors import MerError, UsageError

if TYPE_CHECKING:
    from mer_export.contract import Table
    from mer_export.data.samples import Corpus, Sample
    from mer_export.data.spec import DataSpec
    from runtimes.predictor import Predictor

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Multimodal emotion recognition from research code to production: "
    "train or import, export, infer, prove parity, benchmark.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make, look into and convert data sets.")
app.add_typer(data_app, name="data")

BundleArg = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory.")]
DataOpt = Annotated[Path | None, typer.Option("--data", help="Data set: a directory or file.")]
DataFormat = Annotated[str, typer.Option("--data-format", help="Format of the data, or auto.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Split = Annotated[str, typer.Option("--split", help="Which split of the data.")]
Runtime = Annotated[str, typer.Option("--runtime", help="Backend; see `mer list`.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where it runs; never falls back.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one inference call.")]
Hint = Annotated[Literal["fp32", "bf16"], typer.Option("--hint", help="bf16 lets OpenVINO compute in bfloat16.")]
Precision = Annotated[
    Literal["fp32", "fp16", "int8"], typer.Option("--precision", help="Which of the exported precisions to use.")
]
Overflow = Annotated[
    Literal["error", "window", "truncate"], typer.Option("--overflow", help="What to do with items that are too long.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one value of the config.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A configuration file instead of a preset.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Emotions = Annotated[
    Path | None,
    typer.Option("--emotions", help="Word vectors of the emotions to score, seen in training or not (eea of mtee)."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


# --- rendering -------------------------------------------------------------------------------------------------------


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: typer.echo(line, err=True))


def _emit(value: Any, as_json: bool, render: Callable[[], Iterable[str]]) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=1, default=str))
    else:
        for line in render():
            typer.echo(line)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Aligned columns, two spaces apart; the last one is not padded."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _plan(command: str, plan: dict[str, Any], as_json: bool) -> None:
    _emit({"command": command, **plan}, as_json, lambda: [f"{command}:", *(f"  {k}: {v}" for k, v in plan.items())])


# --- looking ---------------------------------------------------------------------------------------------------------


@app.command()
def doctor(
    require: Annotated[list[str] | None, typer.Option("--require", help="Exit with 5 unless this works.")] = None,
    as_json: Json = False,
) -> None:
    """What is installed here, what works, and why the rest does not."""
    from runtimes import doctor as checks

    report = checks.examine()
    rows = [(c.name, c.status, c.version, c.role, c.detail) for c in report]
    _emit(
        [c.model_dump() for c in report],
        as_json,
        lambda: _table(("what", "status", "version", "for", "detail"), rows),
    )
    checks.require(report, require or [])


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Systems, variants, presets, export formats, runtimes and data formats."""
    from mer_export import exporters
    from mer_export.data import open as data
    from runtimes import BACKENDS
    from train.config import PRESETS

    systems = [registry.get(name) for name in registry.NAMES]
    known: dict[str, Any] = {
        "systems": {s.name: {"title": s.title, "paper": s.paper, "variants": s.variants} for s in systems},
        "presets": list(PRESETS),
        "export formats": list(exporters.FORMATS),
        "runtimes": list(BACKENDS),
        "data formats": {name: record.title for name, record in data.FORMATS.items()},
    }

    def lines() -> Iterable[str]:
        for s in systems:
            yield f"{s.name}  {s.title} ({s.paper}); variants: {', '.join(s.variants)}"
        for key in ("presets", "export formats", "runtimes"):
            yield f"{key}: {', '.join(known[key])}"
        yield "data formats:"
        yield from (f"  {name}  {title}" for name, title in known["data formats"].items())

    _emit(known, as_json, lines)


@app.command()
def verify(bundle: BundleArg, as_json: Json = False) -> None:
    """Check every checksum of a bundle."""
    opened = Bundle.open(bundle)
    files = opened.verify()
    m = opened.manifest
    result = {"bundle": str(bundle), "system": m.system, "files": files, "variants": [v.name for v in m.variants]}
    _emit(result, as_json, lambda: [f"{bundle}: {m.system}, {files} files, {len(m.variants)} variants, all intact"])


# --- data ------------------------------------------------------------------------------------------------------------


@data_app.command("synth")
def data_synth(
    system: Annotated[str, typer.Argument(help="System whose file format to write.")],
    out: Out,
    dataset: Annotated[str, typer.Option("--dataset", help="Which of the authors' data sets to imitate.")] = "meld",
    items: Annotated[int, typer.Option("--dialogues", min=4, help="How many dialogues.")] = 120,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Write a learnable synthetic data set in the authors' own file format, with its ground truth."""
    from mer_export.data.synth import synthesise
    from train.config import apply_overrides

    files = synthesise(system, dataset, out, dialogues=items, seed=seed, **apply_overrides({}, sets or []))
    _emit([str(f) for f in files], as_json, lambda: (str(f) for f in files))


@data_app.command("inspect")
def data_inspect(
    path: Annotated[Path, typer.Argument(help="Any supported file or directory.")],
    data_format: DataFormat = "auto",
    as_json: Json = False,
) -> None:
    """What a data file holds: splits, lengths, dims, labels, missing modalities, problems. Executes nothing in it."""
    from mer_export.data.inspect import inspect_file
    from mer_export.data.spec import DataSpec

    report = inspect_file(path, DataSpec(format=data_format))
    _emit(report, as_json, lambda: _outline(report))


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Data set in any readable format.")],
    out: Out,
    preset: Annotated[str | None, typer.Option("--preset", help="Preset whose data section says how to read.")] = None,
    data_format: DataFormat = "auto",
    force: Force = False,
) -> None:
    """Convert a data set to Parquet: one row per utterance, float lists per modality, split and labels."""
    from mer_export.data.columnar import write_parquet
    from mer_export.data.open import open_corpus

    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    spec, labels = _reading(source, data_format, preset=preset)
    rows = write_parquet(open_corpus(source, spec, labels), out)
    typer.echo(f"{out}: {rows} utterances")


@data_app.command("iemocap")
def data_iemocap(
    release: Annotated[Path, typer.Argument(help="The IEMOCAP release: the folder with Session1 to Session5.")],
    out: Out,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Folder of RoBERTa's tokenizer, for text tokens.")
    ] = None,
    speech: Annotated[
        str | None, typer.Option("--speech-tokenizer", help="Folder of a speech tokeniser, for audio tokens.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option("--text-encoder", help="Folder of bert-base-uncased, for sentence vectors.")
    ] = None,
    sizes: Annotated[list[int] | None, typer.Option("--context", min=0, help="Neighbours on each side.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut the IEMOCAP release into utterances in the files of tab: transcripts, recordings, tokens, context windows."""
    from mer_export.data.iemocap_files import SIZES, prepare

    done = prepare(release, out, tokenizer, speech, encoder, sizes or SIZES, force)
    _emit(done, as_json, lambda: [f"{out}: {_metrics_line(done)}"])


@data_app.command("byte-pairs")
def data_byte_pairs(
    source: Annotated[Path, typer.Argument(help="Text file, one sentence per line, or a data set with sentences.")],
    out: Out,
    size: Annotated[int, typer.Option("--size", min=300, help="Symbols of the vocabulary.")] = 4000,
    preset: Annotated[str | None, typer.Option("--preset", help="Preset whose data section says how to read.")] = None,
    split: Split = "train",
    force: Force = False,
) -> None:
    """Learn a small byte-pair tokenizer from lower-cased sentences: vocab.json and merges.txt."""
    from mer_export.data import bytepairs
    from mer_export.data.readers.dialogue_table import sentences

    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    spec, _ = _reading(source, "auto", preset=preset)
    texts = sentences(source, spec, split) if source.is_dir() else source.read_text(encoding="utf-8").splitlines()
    learnt = bytepairs.learn((t.lower() for t in texts), size)
    bytepairs.write(learnt, out)
    typer.echo(f"{out}: {len(learnt.vocabulary)} symbols from {len(texts)} sentences")


@data_app.command("speech-tokenizer")
def data_speech_tokenizer(
    checkpoint: Annotated[Path, typer.Argument(help="fairseq checkpoint of a k-means vq-wav2vec.")],
    out: Out,
    dictionary: Annotated[Path, typer.Option("--dictionary", help="dict.txt of Speech-BERT.")],
    rate: Annotated[
        Literal["faithful", "correct"],
        typer.Option("--rate", help="faithful: 22 050 Hz as the original reads files; correct: 16 000 Hz."),
    ] = "correct",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a speech tokeniser that runs without PyTorch: vq-wav2vec for any length, and its dictionary."""
    from mer_export.exporters.speech_tokenizer import import_tokenizer

    files = import_tokenizer(checkpoint, dictionary, out, rate, force)
    _emit([str(f) for f in files], as_json, lambda: (str(f) for f in files))


def _outline(value: dict[Any, Any], indent: str = "") -> Iterable[str]:
    for key, entry in value.items():
        if key == "histogram":
            yield f"{indent}{key}: " + " ".join(f"{k}×{n}" for k, n in entry.items())
        elif isinstance(entry, dict):
            yield f"{indent}{key}:"
            yield from _outline(entry, indent + "  ")
        else:
            yield f"{indent}{key}: {entry}"


def _reading(
    path: Path,
    data_format: str,
    bundle: Bundle | None = None,
    preset: str | None = None,
    sets: Sequence[str] | None = None,
) -> tuple[DataSpec, Sequence[str] | None]:
    """How to read `path`: as --data-format says, else as the bundle or preset does where it fits, else by the files.

    `sets` are overrides such as `data.emotions.zsl=null` of what the bundle or preset says.
    """
    import yaml

    from mer_export.data.open import FORMATS
    from mer_export.data.spec import DataSpec
    from mer_export.data.tokenizers import with_kept

    labels = bundle.manifest.task.labels if bundle else None
    if data_format != "auto":
        return DataSpec(format=data_format), labels
    spec = DataSpec()
    if bundle:
        spec = DataSpec.model_validate(yaml.safe_load(bundle.path(CONFIG).read_text()).get("data") or {})
        spec = with_kept(spec, bundle)
    elif preset:
        from train.config import load_preset

        config = load_preset(preset)
        spec, labels = config.data, config.model.get("labels")
    if sets:
        spec = _override(spec, sets)
    # A name that is no format is refused where the data are opened.
    fits = spec.format not in FORMATS or FORMATS[spec.format].load().detect(path, spec)
    # Data in another format are still read as utterances with their context, with the same tokenizer and packing.
    kept = {n: getattr(spec, n) for n in ("context", "tokenizer", "packing", "faces")}
    return (spec if fits else DataSpec(**kept)), labels


def _override(spec: DataSpec, sets: Sequence[str]) -> DataSpec:
    from pydantic import ValidationError

    from train.config import apply_overrides

    values = apply_overrides({"data": spec.model_dump(mode="json")}, sets)
    if set(values) != {"data"}:
        raise UsageError(f"--set changes the data section here, write it as data.field=value: {list(sets)}")
    try:
        return type(spec).model_validate(values["data"])
    except ValidationError as error:
        raise UsageError(f"data: {registry.first_problem(error)}") from None


def _corpus(
    bundle: Bundle,
    path: Path,
    data_format: str,
    sets: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Corpus:
    """A data set as the bundle reads it, with the labels of its task or others."""
    from mer_export.data.open import open_corpus

    spec, own = _reading(path, data_format, bundle, sets=sets)
    return open_corpus(path, spec, labels or own)


def _samples(bundle: Bundle, path: Path, data_format: str, split: str) -> list[Sample]:
    return _corpus(bundle, path, data_format).split(split)


def _emotions(path: Path | None) -> dict[str, Table]:
    """Other values of the emotion matrix, from any file of word vectors."""
    if path is None:
        return {}
    from mer_export.data.word_vectors import read_word_vectors

    return {"emotions": {word: tuple(vector.tolist()) for word, vector in read_word_vectors(path).items()}}


# --- making ----------------------------------------------------------------------------------------------------------


def _resolve(system: str, preset: str | None, config: Path | None, sets: list[str] | None, **values: Any) -> Any:
    from train.config import load_config, load_preset

    registry.get(system)
    overrides = [*(sets or []), *(f"{name}={value}" for name, value in values.items() if value is not None)]
    if (preset is None) == (config is None):
        raise UsageError("pass either --preset or --config; `mer list` names the presets")
    if config is not None:
        return load_config(config, overrides)
    assert preset is not None
    return load_preset(preset if "/" in preset else f"{system}/{preset}", overrides)


@app.command()
def train(
    system: Annotated[str, typer.Argument(help="System to train; see `mer list`.")],
    data: Annotated[Path, typer.Option("--data", help="Data set: a directory or file.")],
    out: Out,
    preset: Annotated[str | None, typer.Option("--preset", help="Named recipe, e.g. meld or m3net/meld.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    seed: Seed = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option("--device", help="Where to train.")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"] | None, typer.Option("--precision", help="bf16 is autocast.")
    ] = None,
    fold: Annotated[
        int | None, typer.Option("--fold", min=0, help="One run of the data's cross-validation (tab).")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events.")] = False,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model into a bundle. Run the same command again after an interruption and it goes on."""
    from train.crossval import of_fold
    from train.fit import fit

    resolved = _resolve(system, preset, config, sets, seed=seed, device=device, precision=precision)
    if fold is not None:
        resolved = of_fold(resolved, fold)
    if dry_run:
        return _plan("train", {"out": str(out), "data": str(data), **resolved.model_dump(mode="json")}, as_json)
    bundle = fit(resolved, data, out, force=force, quiet=quiet, tensorboard=tensorboard)
    result = bundle.manifest.provenance.get("result", {})
    _emit({"bundle": str(out), **result}, as_json, lambda: [f"{out}: " + _metrics_line(result)])
    return None


@app.command()
def crossval(
    system: Annotated[str, typer.Argument(help="System to train; see `mer list`.")],
    data: Annotated[Path, typer.Option("--data", help="Data set: a directory or file.")],
    out: Out,
    preset: Annotated[str | None, typer.Option("--preset", help="Named recipe, e.g. iemocap_cv.")] = None,
    config: ConfigFile = None,
    folds: Annotated[list[int] | None, typer.Option("--fold", min=0, help="Repeat for several; default all.")] = None,
    sets: Sets = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train every fold of the data's cross-validation into one bundle each, and average what they measure."""
    from mer_export.data.folds import RUNS
    from train.crossval import cross_validate, of_fold

    resolved = _resolve(system, preset, config, sets, seed=seed)
    chosen = folds or list(range(RUNS))
    if dry_run:
        configs = {k: of_fold(resolved, k).model_dump(mode="json") for k in chosen}
        return _plan("crossval", {"out": str(out), "folds": chosen, "config": configs[chosen[0]]}, as_json)
    summary = cross_validate(resolved, data, out, chosen, force=force, quiet=quiet)
    rows = [
        (split, name, f"{value['mean']:.2f}", f"{value['std']:.2f}")
        for split, metrics in summary["splits"].items()
        for name, value in metrics.items()
    ]
    _emit(summary, as_json, lambda: _table(("split", "metric", "mean", "std over folds"), rows))
    return None


@app.command("import")
def import_(
    system: Annotated[str, typer.Argument(help="System the checkpoint belongs to.")],
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Authors' weights: torch or safetensors.")
    ],
    out: Out,
    preset: Annotated[str | None, typer.Option("--preset", help="Recipe that the checkpoint was trained with.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a bundle from the authors' checkpoint; every missing, unexpected or misshapen entry is an error."""
    from mer_export.importer import import_checkpoint

    resolved = _resolve(system, preset, config, sets)
    if dry_run:
        return _plan("import", {"out": str(out), **resolved.model_dump(mode="json")}, as_json)
    _, report = import_checkpoint(system, checkpoints, resolved.model_dump(mode="json"), out, force)
    _emit({"bundle": str(out), **report}, as_json, lambda: [f"{out}: {_metrics_line(report)}"])
    return None


@app.command()
def export(
    bundle: BundleArg,
    formats: Annotated[list[str] | None, typer.Option("--format", help="Repeat for several; see `mer list`.")] = None,
    precisions: Annotated[list[str] | None, typer.Option("--precision", help="fp32, fp16 or int8.")] = None,
    seq_len: Annotated[list[str] | None, typer.Option("--seq-len", metavar="DIM=N", help="Fixed lengths.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=0, help="Fixed batch size; 0 dynamic where possible.")] = 0,
    opset: Annotated[int, typer.Option("--opset", help="ONNX opset.")] = 20,
    stages: Annotated[
        bool, typer.Option("--stages", help="Export the network's stages apart, where it has some (facialmmt).")
    ] = False,
    data: DataOpt = None,
    data_format: DataFormat = "auto",
    split: Split = "test",
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a bundle's model: one artefact per format, precision and length bucket."""
    from mer_export import exporters

    opened, say = Bundle.open(bundle), _say(quiet)
    contract = opened.manifest.contract
    jobs = [
        (name, precision, lengths)
        for name in formats or ["onnx"]
        for precision in precisions or ["fp32"]
        for lengths in ([contract.parse_lengths(s) for s in seq_len] if seq_len else contract.buckets)
    ]
    for name, precision, lengths in jobs:
        exporters.check_request(opened, name, lengths, batch, precision, opset, stages)
    if dry_run:
        return _plan("export", {"bundle": str(bundle), "opset": opset, "batch": batch, "variants": jobs}, as_json)
    example = None if data is None else _samples(opened, data, data_format, split)
    made = []
    for name, precision, lengths in jobs:
        variant = exporters.export_variant(
            opened,
            name,
            lengths,
            batch=batch,
            precision=precision,
            opset=opset,
            force=force,
            example=example,
            stages=stages,
        )
        made.append(variant)
        say(f"exported {variant.name}")
    _emit([v.model_dump() for v in made], as_json, lambda: (v.name for v in made))
    return None


# --- using -----------------------------------------------------------------------------------------------------------


@app.command()
def infer(
    bundle: BundleArg,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Data set in any readable format.")],
    out: Out,
    runtime: Runtime = "onnxruntime",
    split: Annotated[str | None, typer.Option("--split", help="One split; default all.")] = None,
    data_format: DataFormat = "auto",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items per call.")] = 16,
    device: Device = "cpu",
    threads: Threads = None,
    hint: Hint = "fp32",
    precision: Precision = "fp32",
    overflow: Overflow = "error",
    emotions: Emotions = None,
    sets: Sets = None,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Label every utterance: JSONL, CSV or Parquet by the ending of --out, in the order of the input."""
    from mer_export.data.open import stream_samples
    from runtimes import output
    from runtimes.predictor import Predictor
    from runtimes.session import SessionOptions

    opened = Bundle.open(bundle)
    spec, labels = _reading(source, data_format, bundle=opened, sets=sets)
    if dry_run:
        plan = {"bundle": str(bundle), "input": str(source), "out": str(out), "runtime": runtime, "batch": batch}
        plan |= {"precision": precision}
        return _plan("infer", plan | {"overflow": overflow, "data": spec.model_dump(mode="json")}, as_json)
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    options = SessionOptions(device=device, threads=threads, hint=hint)
    shared = _emotions(emotions)
    with Predictor(opened, runtime, options, batch, overflow, precision, shared=shared) as predictor:
        samples = stream_samples(source, spec, None if emotions else labels, split)
        summary = output.write(predictor.predict(samples), out, predictor.task, say=_say(quiet))
    _emit({"out": str(out), **summary}, as_json, lambda: [f"{out}: {_metrics_line(summary)}"])
    return None


@app.command("eval")
def eval_(
    bundle: BundleArg,
    data: Annotated[Path, typer.Option("--data", help="Labelled data set.")],
    split: Split = "test",
    data_format: DataFormat = "auto",
    runtime: Runtime = "torch",
    semantics: Annotated[
        Literal["single", "batch"], typer.Option("--semantics", help="batch: as published, torch only.")
    ] = "single",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items per call.")] = 16,
    device: Device = "cpu",
    threads: Threads = None,
    hint: Hint = "fp32",
    precision: Precision = "fp32",
    missing: Annotated[
        str | None,
        typer.Option("--missing-rate", metavar="RATES", help="Drop steps: 0.3, 0.0:1.0:0.1 or text,audio,vision."),
    ] = None,
    emotions: Emotions = None,
    sets: Sets = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Task metrics of a bundle on labelled data; over missing rates they also go into the bundle's report."""
    from runtimes.evaluate import evaluate
    from runtimes.predictor import Predictor
    from runtimes.session import SessionOptions

    opened = Bundle.open(bundle)
    shared = _emotions(emotions)
    options = SessionOptions(device=device, threads=threads, hint=hint)
    corpus = _corpus(opened, data, data_format, sets, [n for table in shared.values() for n in table])
    if missing is not None:
        with Predictor(opened, runtime, options, batch, precision=precision, shared=shared) as predictor:
            return _eval_missing(predictor, corpus, split, missing, _say(quiet), as_json)
    samples = corpus.split(split)
    if semantics == "batch":
        from train.evaluate import evaluate_published

        if shared:
            raise UsageError("--emotions goes with --semantics single")
        if runtime != "torch" or precision != "fp32":
            raise UsageError(
                f"--semantics batch runs in PyTorch only: pass --runtime torch, not {runtime} in {precision}"
            )
        metrics = evaluate_published(opened, samples, batch)
    else:
        with Predictor(opened, runtime, options, batch, precision=precision, shared=shared) as predictor:
            metrics = evaluate(predictor, samples)
    result = {"bundle": str(bundle), "split": split, "runtime": runtime, "semantics": semantics, "metrics": metrics}
    result |= {"precision": precision}
    _emit(result, as_json, lambda: _table(("metric", "value"), [(k, _metric(k, v)) for k, v in metrics.items()]))
    return None


def _metric(name: str, value: float) -> str:
    from mer_export.sentiment_metrics import PLAIN

    return f"{value:.4f}" if name in PLAIN else f"{value:.2f}"


def _eval_missing(
    predictor: Predictor, corpus: Corpus, split: str, rates: str, say: Callable[[str], None], as_json: bool
) -> None:
    from runtimes import robustness

    samples, arrays = corpus.split(split), corpus.info.get("arrays", {}).get(split)
    report = robustness.run_robustness(predictor, samples, robustness.parse_rates(rates), arrays, split, say)
    robustness.save(predictor.bundle, report)
    _emit(report.model_dump(), as_json, lambda: robustness.markdown(report).splitlines())


@app.command()
def parity(
    bundle: BundleArg,
    data: Annotated[Path, typer.Option("--data", help="Data set to compare on.")],
    split: Split = "test",
    data_format: DataFormat = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many items.")] = None,
    atol: Annotated[list[str] | None, typer.Option("--atol", metavar="[OUTPUT:]VALUE", help="Tolerance.")] = None,
    rtol: Annotated[list[str] | None, typer.Option("--rtol", metavar="[OUTPUT:]VALUE", help="Relative part.")] = None,
    threads: Threads = 1,
    strict: Annotated[bool, typer.Option("--strict", help="A variant that cannot run here is a failure.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do all variants give PyTorch's answers? Exit code 3 if not."""
    from runtimes import parity as checks
    from runtimes.policy import Policy
    from runtimes.report import write_report

    opened = Bundle.open(bundle)
    samples = _samples(opened, data, data_format, split)[:limit]
    policy = Policy.parse(atol or [], rtol or [])
    report = checks.run_parity(
        opened, samples, policy, threads=threads, source=f"{data.name}, {split}", say=_say(quiet)
    )
    checks.save(opened, report)
    write_report(opened)
    _emit(report.model_dump(mode="json"), as_json, lambda: [checks.markdown(report)])
    checks.require(report, strict)


@app.command()
def bench(
    bundle: BundleArg,
    data: DataOpt = None,
    split: Split = "test",
    data_format: DataFormat = "auto",
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Repeat for several.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Interleaved rounds.")] = 15,
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How fast are all variants, interleaved in one run, against eager PyTorch?"""
    from runtimes import bench as benchmark
    from runtimes.report import write_report

    opened = Bundle.open(bundle)
    samples = None if data is None else _samples(opened, data, data_format, split)
    report = benchmark.run_bench(
        opened, samples, batches=batches or [1, 16], rounds=rounds, threads=threads, say=_say(quiet)
    )
    benchmark.save(opened, report)
    write_report(opened)
    _emit(report.model_dump(mode="json"), as_json, lambda: [benchmark.markdown(report)])


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory for data, bundle and report.")] = Path("demo"),
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """The whole path on a synthetic conversation corpus: train, export, infer, parity, bench, report."""
    corpus, bundle, say = out / "data", out / "bundle", _say(quiet)
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to run the demo again, or another --out")
    say("1/6 synthetic dialogues in the authors' MELD file format")
    data_synth("cmerc", corpus, sets=["text_dim=32", "audio_dim=24", "vision_dim=16"])
    say("2/6 training cmerc with calibration, contrast and curriculum")
    train("cmerc", corpus, bundle, preset="sample/demo", force=force, quiet=quiet)
    say("3/6 exporting")
    for formats, lengths in ((["onnx"], None), (["torchscript", "exported_program", "tensorrt"], ["utterances=16"])):
        export(bundle, formats, seq_len=lengths, data=corpus, quiet=quiet)
    say("4/6 labelling the test split")
    infer(bundle, corpus, out / "predictions.jsonl", split="test", overflow="window", force=force, quiet=quiet)
    say("5/6 parity of every variant with PyTorch")
    parity(bundle, corpus, quiet=quiet)
    say("6/6 latency of every variant against PyTorch")
    bench(bundle, corpus, batches=[1, 16], rounds=7, quiet=quiet)
    typer.echo(f"open {bundle / 'reports' / 'report.html'}")


def _metrics_line(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


@app.callback(invoke_without_command=True)
def _global(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if debug:
        os.environ["MER_DEBUG"] = "1"


def main() -> None:
    """Runs the command line; errors become one sentence and an exit code."""
    try:
        app()
    except MerError as error:
        _fail(error, str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        _fail(error, f"internal error: {type(error).__name__}: {error} (mer --debug shows where)", 1)


def _fail(error: Exception, sentence: str, code: int) -> None:
    if os.environ.get("MER_DEBUG"):
        raise error
    typer.echo(f"mer: {sentence}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
