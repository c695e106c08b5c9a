"""The commands that make a bundle, `mer train`, `crossval` and `import`, and `mer init`, which writes a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mer_export.console import DryRun, Force, Json, Out, Outside, Quiet, Sets, Verbose, emit, emit_plan
from mer_export.metrics import find
from mer_export.terminal import columns, summary_line

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A configuration file instead of a preset.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]


def init(
    system: Annotated[str, typer.Argument(help="System to train; see `mer list`.")],
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
    system: Annotated[str, typer.Argument(help="System to train; see `mer list`.")],
    data: Annotated[Path, typer.Option("--data", help="Data set: a directory or file.")],
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
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events.")] = False,
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
    from train.config import TRAINING_READS, resolve_config
    from train.crossval import of_fold
    from train.fit import fit, preview
    from train.own_data import own_config

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
    bundle = fit(resolved, data, out, force=force, quiet=quiet, tensorboard=tensorboard)
    if encoders:
        attach(bundle, found_beside(data, said_extractors(data, resolved.data)))
    result = bundle.manifest.provenance.get("result", {})
    emit({"bundle": str(out), **result}, as_json, lambda: [f"{out}: " + summary_line(result)])
    return None


def crossval(
    system: Annotated[str, typer.Argument(help="System to train; see `mer list`.")],
    data: Annotated[Path, typer.Option("--data", help="Data set: a directory or file.")],
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
    from mer_export.data.formats.tab.folds import RUNS
    from train.config import resolve_config
    from train.crossval import cross_validate, of_fold
    from train.fit import preview

    resolved = resolve_config(system, preset, config, sets or (), outside, data, seed=seed)
    chosen = folds or list(range(RUNS))
    if dry_run:
        plans = {f"fold {k}": preview(of_fold(resolved, k), data, out / f"fold{k}", force) for k in chosen}
        first = of_fold(resolved, chosen[0]).model_dump(mode="json")
        return emit_plan("crossval", {"out": str(out), "folds": chosen, **plans, "config": first}, as_json)
    summary = cross_validate(resolved, data, out, chosen, force=force, quiet=quiet)
    rows = [
        (split, name, find(name).text(value["mean"]), find(name).text(value["std"]))
        for split, metrics in summary["splits"].items()
        for name, value in metrics.items()
    ]
    emit(summary, as_json, lambda: columns(("split", "metric", "mean", "std over folds"), rows))
    return None


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
