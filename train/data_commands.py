"""`mer data`: make, look into and convert data sets. It stands beside the presets, which know how to read theirs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mer_export import faults
from mer_export.console import (
    DataFormat,
    Force,
    Json,
    Out,
    Outside,
    Quiet,
    Sets,
    Verbose,
    emit,
    refuse_existing,
    say_unless,
)
from mer_export.errors import UsageError
from mer_export.terminal import outline, summary_line

PresetOfData = Annotated[str | None, typer.Option("--preset", help="Preset whose data section says how to read.")]
app = typer.Typer(no_args_is_help=True, help="Make, look into and convert data sets.")


@app.command("synth")
def synth(
    system: Annotated[str, typer.Argument(help="System whose file format to write.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; default SYSTEM-synthetic.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Which of the authors' data sets to imitate; default the first.")
    ] = None,
    items: Annotated[int, typer.Option("--dialogues", min=4, help="How many dialogues, or utterances.")] = 120,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    sets: Sets = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds files.")] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a learnable synthetic data set in the authors' own file format, and say what trains on it."""
    from mer_export.data.synthetic import first_dataset, synthesise
    from mer_export.overrides import apply_overrides

    folder, chosen = out or Path(f"{system}-synthetic"), dataset or first_dataset(system)
    values = apply_overrides({}, sets or [])
    with faults.at(folder):
        # Its files are called as the authors' are, which may be what lies there.
        if not force and folder.is_dir() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} holds files: pass --force to write over those of the same names, or another --out"
            )
        files = synthesise(system, chosen, folder, dialogues=items, seed=seed, **values)
    emit([str(f) for f in files], as_json, lambda: (str(f) for f in files))
    # Other widths than the real data set's need another network than the preset's.
    say_unless(quiet or bool(sets))(_training_line(system, chosen, folder))


def _training_line(system: str, dataset: str, data: Path) -> str:
    """The command that trains on a synthetic data set."""
    words = ["mer", "train", system, "--preset", f"synthetic/{system}_{dataset}", "--data", str(data)]
    tokenizer = data / "tokenizer"
    words += ["--set", f"data.tokenizer={tokenizer}"] if tokenizer.is_dir() else []
    return shlex.join([*words, "--out", "runs/a"])


@app.command("inspect")
def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, a data set, or any supported file.")],
    data_format: DataFormat = "auto",
    sets: Sets = None,
    drafted: Annotated[
        bool, typer.Option("--draft", help="Print a table.yaml for a table, by the names of its columns.")
    ] = False,
    outside: Outside = None,
    as_json: Json = False,
) -> None:
    """What a bundle or data set holds: contract and variants; splits, lengths, labels, problems. Executes nothing."""
    from mer_export.data.bundle_data import choose_spec, overridden
    from mer_export.data.draft import draft
    from mer_export.data.inspect import inspect_file, undescribed
    from mer_export.data.spec import DataSpec
    from mer_export.untrusted.places import Allowed

    spec = overridden(DataSpec(), sets or ())
    if drafted:
        if data_format != "auto" or outside:
            raise UsageError("--draft goes by the names of columns: leave --data-format and --outside out")
        return typer.echo(draft(path, spec), nl=False)
    if undescribed(path, spec):
        spec = spec.allowing(Allowed.by(outside))
    else:
        spec = choose_spec(path, data_format, DataSpec(), sets or (), outside)
    report = inspect_file(path, spec)
    emit(report, as_json, lambda: _described(report))
    return None


def _described(report: dict[str, Any]) -> Iterator[str]:
    """A report as lines, a draft in it as it has to be pasted."""
    yield from outline({name: value for name, value in report.items() if name != "draft"})
    yield from ("", *report["draft"]) if "draft" in report else ()


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="Data set in any readable format.")],
    out: Out,
    preset: PresetOfData = None,
    data_format: DataFormat = "auto",
    outside: Outside = None,
    force: Force = False,
) -> None:
    """Convert a data set to Parquet: one row per utterance, lists of numbers per input, split and labels."""
    from mer_export.data.bundle_data import choose_spec
    from mer_export.data.formats.parquet.rows import new_file
    from mer_export.data.formats.parquet.writer import write_parquet
    from mer_export.data.open import open_corpus
    from mer_export.data.spec import DataSpec
    from train.config import load_preset

    out = new_file(out, force)
    configured, labels = DataSpec(), None
    if preset:
        config = load_preset(preset, (), outside, source)
        configured, labels = config.data, config.model.get("labels")
    spec = choose_spec(source, data_format, configured, (), outside)
    rows = write_parquet(open_corpus(source, spec, labels), out)
    typer.echo(f"{out}: {rows} utterances")


@app.command("normalise")
def normalise(
    source: Annotated[Path, typer.Argument(help="MMSA feature pickle, e.g. unaligned_39.pkl of SIMS.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: <name>_normalized.pkl beside it.")] = None,
    force: Force = False,
) -> None:
    """Bring audio and vision to the mean and deviation of the training split, as EMT-DLFR does to SIMS."""
    from mer_export.data.formats.mmsa.normalise import normalised_path, write_normalised

    target = out or normalised_path(source)
    refuse_existing(target, force)
    typer.echo(str(write_normalised(source, target)))


@app.command("iemocap")
def iemocap(
    release: Annotated[Path, typer.Argument(help="The IEMOCAP release: the folder with Session1 to Session5.")],
    out: Out,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Folder of RoBERTa's tokenizer, for text tokens.")
    ] = None,
    speech: Annotated[
        str | None, typer.Option("--speech-tokenizer", help="Folder of a speech tokenizer, for audio tokens.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--sentence-encoder", help="Folder of a sentence encoder, for context windows.")
    ] = None,
    sizes: Annotated[list[int] | None, typer.Option("--context", min=0, help="Neighbours on each side.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut the IEMOCAP release into utterances in the files of tab: transcripts, recordings, tokens, context windows."""
    from mer_export.data.formats.tab.prepare import SIZES, prepare

    with faults.at(out):
        done = prepare(release, out, tokenizer, speech, encoder, sizes or SIZES, force)
    emit(done, as_json, lambda: [f"{out}: {summary_line(done)}"])


@app.command("byte-pairs")
def byte_pairs(
    source: Annotated[Path, typer.Argument(help="Text file, one sentence per line, or a data set with sentences.")],
    out: Out,
    size: Annotated[int, typer.Option("--size", min=300, help="Symbols of the vocabulary.")] = 4000,
    preset: PresetOfData = None,
    split: Annotated[str | None, typer.Option("--split", help="Which split of a data set; default train.")] = None,
    outside: Outside = None,
    force: Force = False,
) -> None:
    """Train a small byte-pair tokenizer from lower-cased sentences: vocab.json and merges.txt."""
    from mer_export.data.bundle_data import choose_spec
    from mer_export.data.open import open_file_format, sentences
    from mer_export.data.spec import DataSpec
    from mer_export.data.tokens.byte_pair_training import train_byte_pairs
    from mer_export.untrusted.texts import decoded
    from train.config import load_preset

    refuse_existing(out, force)
    configured = load_preset(preset, (), outside, source).data if preset else DataSpec()
    spec = choose_spec(source, "auto", configured, (), outside)
    data = source.is_dir() or open_file_format(source, spec)
    if not data and (preset or split or outside):
        raise UsageError(f"{source} is read as a text, line by line: leave --preset, --split and --outside out")
    texts = (
        sentences(source, spec, split or "train") if data else decoded(source.read_bytes(), str(source)).splitlines()
    )
    with faults.at(out):
        symbols = train_byte_pairs((t.lower() for t in texts), size, out)
    typer.echo(f"{out}: {symbols} symbols from {len(texts)} sentences")
