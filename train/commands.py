"""The commands that make a bundle, `mer train`, `crossval` and `import`, and those that prepare one.

`mer init` writes a recipe, `mer difficulty` what CMERC's curriculum reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mer_export.console import (
    BundleArg,
    Data,
    DataFormat,
    DryRun,
    Force,
    Json,
    Out,
    Outside,
    Quiet,
    Sets,
    Split,
    Verbose,
    emit,
    emit_plan,
    refuse_existing,
)
from mer_export.progress import progress_unless
from mer_export.terminal import summary_line

SystemArg = Annotated[str, typer.Argument(help="System to train; see `mer list`.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A configuration file instead of a preset.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]


def init(
    system: SystemArg,
    data: Annotated[Path, typer.Argument(help="Your data set: a directory or file.")],
    sets: Sets = None,
    outside: Outside = None,
) -> None:
    """Print the complete recipe that fits a data set, with what every setting means."""
    from train.commented import commented
    from train.own_data import own_config

    typer.echo(f"# mer train {system} --config THIS_FILE --data {data} --out runs/a")
    typer.echo(commented(own_config(system, data, sets or (), outside)), nl=False)


def train(
    system: SystemArg,
    data: Data,
    out: Out,
    preset: Annotated[str | None, typer.Option("--preset", help="Named recipe, e.g. meld or m3net/meld.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    outside: Outside = None,
    seed: Seed = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, or one of several: cuda:1.")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16"] | None,
        typer.Option("--precision", help="tf32 rounds products on a GPU, bf16 is autocast."),
    ] = None,
    fold: Annotated[
        int | None, typer.Option("--fold", min=0, help="One run of the data's cross-validation (tab).")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events: --track tensorboard.")
    ] = False,
    track: Annotated[
        str | None,
        typer.Option("--track", metavar="NAMES", help="Follow the run with tensorboard, mlflow, wandb; with commas."),
    ] = None,
    encoders: Annotated[
        bool, typer.Option("--encoders/--no-encoders", help="Take along the encoders that stand beside the data.")
    ] = True,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model into a bundle, without a preset as the data are. Run it again after an interruption to go on."""
    from mer_export.data.bundle_data import refuse_unread
    from mer_export.data.open import said_extractors
    from mer_export.encoders.attached import attach, found_beside
    from train.config import TRAINING_READS, main_process, resolve_config
    from train.experiments.crossval import of_fold
    from train.fit import fit, preview
    from train.own_data import own_config
    from train.tracking import parse_trackers

    trackers = parse_trackers(track)
    given = {"seed": seed, "device": device, "precision": precision}
    if preset is None and config is None:
        resolved = own_config(system, data, sets or (), outside, **given)
    else:
        resolved = resolve_config(system, preset, config, sets or (), outside, data, **given)
    refuse_unread(data, resolved.data, [s for s in sets or () if s.startswith("data.")], TRAINING_READS)
    if fold is not None:
        resolved = of_fold(resolved, fold)
    if dry_run:
        plan = {"out": str(out), "plan": preview(resolved, data, out, force), **resolved.model_dump(mode="json")}
        return emit_plan("train", plan, as_json)
    bundle = fit(resolved, data, out, force=force, quiet=quiet, tensorboard=tensorboard, track=trackers)
    if not main_process():
        # The first one alone writes, and says what came of it.
        return None
    if encoders:
        attach(bundle, found_beside(data, said_extractors(data, resolved.data)))
    result = bundle.manifest.provenance.get("result", {})
    emit({"bundle": str(out), **result}, as_json, lambda: [f"{out}: " + summary_line(result)])
    return None


def crossval(
    system: SystemArg,
    data: Data,
    out: Out,
    preset: Annotated[str | None, typer.Option("--preset", help="Named recipe, e.g. iemocap_cv.")] = None,
    config: ConfigFile = None,
    folds: Annotated[list[int] | None, typer.Option("--fold", min=0, help="Repeat for several; default all.")] = None,
    sets: Sets = None,
    outside: Outside = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train every fold of the data's cross-validation into one bundle each, and average what they measure."""
    from mer_export.data.bundle_data import refuse_unread
    from mer_export.data.formats.tab.folds import RUNS
    from train.config import TRAINING_READS, resolve_config
    from train.experiments.crossval import plan_folds
    from train.experiments.run import run
    from train.fit import preview

    resolved = resolve_config(system, preset, config, sets or (), outside, data, seed=seed)
    refuse_unread(data, resolved.data, [s for s in sets or () if s.startswith("data.")], TRAINING_READS)
    planned = plan_folds(resolved, folds or list(range(RUNS)))
    if dry_run:
        jobs = planned.rounds[0]
        plans = {job.title: preview(job.config, data, out / job.folder, force) for job in jobs}
        return emit_plan(
            "crossval", {"out": str(out), **plans, "config": jobs[0].config.model_dump(mode="json")}, as_json
        )
    result = run(planned, data, out, progress_unless(quiet), force=force)
    emit(result.model_dump(mode="json"), as_json, lambda: result.markdown().splitlines())
    result.refuse_gaps()
    return None


def difficulty(
    bundle: BundleArg,
    data: Annotated[Path, typer.Option("--data", help="Labelled dialogues.")],
    out: Out,
    split: Split = "train",
    data_format: DataFormat = "auto",
    sets: Sets = None,
    outside: Outside = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure how hard each dialogue is for a trained cmerc model: the file that CMERC's curriculum reads."""
    from mer_export.bundle import Bundle
    from mer_export.data.bundle_data import bundle_corpus, features_alone
    from train.systems.cmerc.difficulty import measure_difficulty, write_difficulty

    refuse_existing(out, force)
    opened = Bundle.open(bundle)
    through = features_alone(opened, data)
    samples = bundle_corpus(opened, data, data_format, sets or (), (), outside, through).split(split)
    found = measure_difficulty(opened, samples)
    write_difficulty(out, found)
    hardest = max(found, key=lambda name: found[name])
    result = {"out": str(out), "dialogues": len(found), "hardest": hardest, "difficulty": round(found[hardest], 4)}
    emit(result, as_json, lambda: [summary_line(result)])


def import_(
    system: Annotated[str, typer.Argument(help="System the checkpoint belongs to.")],
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Authors' weights: torch or safetensors.")
    ],
    out: Out,
    preset: Annotated[str | None, typer.Option("--preset", help="Recipe that the checkpoint was trained with.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    outside: Outside = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Where in the file the weights are, if several sets of them fit: ema.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a bundle from the authors' checkpoint; every missing, unexpected or misshapen entry is an error."""
    from mer_export.importer import import_checkpoint, read_checkpoint
    from train.config import network_config

    resolved, allowed = network_config(system, preset, config, sets or (), outside)
    if dry_run:
        read = read_checkpoint(system, checkpoints, resolved, key, allowed)
        buckets = [b.name for b in read.manifest.contract.buckets]
        plan = {"out": str(out), "variant": read.manifest.variant, "buckets": buckets, **read.report}
        return emit_plan("import", plan | {"config": read.resolved}, as_json)
    _, report = import_checkpoint(system, checkpoints, resolved, out, force, key, allowed)
    emit({"bundle": str(out), **report}, as_json, lambda: [f"{out}: {summary_line(report)}"])
    return None
