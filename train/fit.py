"""`fit`: from a configuration and a data set to a bundle, resumable after every committed epoch.

Several processes: start the same command with `torchrun` or `accelerate launch`; `batch` then counts per process,
and the first process alone writes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mer_export import registry
from mer_export.bundle import CONFIG, MANIFEST, WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract, Semantics
from mer_export.data.collate import collate
from mer_export.data.samples import Sample, readable
from mer_export.data.spec import DataSpec, written_in_full
from mer_export.encoders.context import keep_tools
from mer_export.errors import UsageError
from mer_export.evaluation import EVALUATION, Evaluation, dump_evaluations
from mer_export.metrics.table import find, main
from mer_export.progress import SILENT, Progress, progress_unless
from mer_export.task import Task
from mer_export.untrusted.yaml_files import read_yaml
from mer_export.weights import save_weights
from train.balance import Balance
from train.config import TrainConfig, dump_config, first_difference
from train.devices import computing, describe
from train.encoders import RANDOM, describe_sources
from train.evaluate import evaluate
from train.loop import Phase, set_statistics
from train.prepared import Prepared, prepare_run
from train.protocol import Before
from train.provenance import feature_statistics, provenance, starts
from train.recipe import protocol_class
from train.seeds import seed_everything
from train.state import DIFFICULTY, RunState, load_tensors, phase_state, read_state
from train.tracking import Log, require_trackers, tracking

if TYPE_CHECKING:
    from torch import nn


def fit(
    config: TrainConfig,
    data_path: Path | str,
    out: Path | str,
    resume: bool = True,
    force: bool = False,
    quiet: bool = False,
    tensorboard: bool = False,
    track: Sequence[str] = (),
) -> Bundle:
    """Trains, evaluates and writes a bundle.

    Args:
        config: a preset with overrides, or a configuration file.
        data_path: file or directory that `config.data` describes.
        out: the bundle. A run that was interrupted there continues; a finished one is returned as it is.
        resume: False refuses an existing bundle instead.
        force: starts over, replacing an existing bundle.
        quiet: shows no progress.
        tensorboard: the same as `tensorboard` among the trackers: beside the bundle, in `<out>-tensorboard`.
        track: trackers that get losses and metrics of every epoch, see `train.tracking.TRACKERS`.

    Returns:
        The trained bundle; `train/evaluation.json` in it holds the final metrics per split and semantics.

    Raises:
        UsageError: the bundle belongs to another configuration or other data, or what `prepare_run` refuses.
        InputError: data that the model cannot take.
        NotAvailableError: the package of a tracker is missing.
    """
    begun = not force and (Path(out) / MANIFEST).is_file()
    trackers = tuple(dict.fromkeys([*(["tensorboard"] if tensorboard else []), *track]))
    require_trackers(trackers)
    prepared = prepare_run(config, Path(data_path), draws_weights=not begun and config.init is None)
    made_by = provenance(prepared.source, config.licence) | starts(config, prepared.settings, prepared.data)
    accelerator = prepared.accelerator
    bundle, state = _existing(Path(out), prepared, made_by, resume) if not force else (None, RunState())
    if bundle is not None and state.finished:
        return bundle
    accelerator.wait_for_everyone()
    shown = progress_unless(quiet) if accelerator.is_main_process else SILENT
    resumed = bundle is not None
    if bundle is None and accelerator.is_main_process:
        bundle = Bundle.create(out, _manifest(prepared, made_by), force=force)
    with contextlib.ExitStack() as stack:
        stack.enter_context(computing(config, accelerator.device))
        if bundle is not None and accelerator.is_main_process:
            stack.enter_context(bundle.lock())
        stack.callback(shown.close)
        followed = trackers if accelerator.is_main_process else ()
        log = stack.enter_context(tracking(followed, config, Path(out)))
        difficulty = _difficulty(prepared, bundle if resumed else None, shown)
        run = Run(prepared, bundle, state, difficulty, shown, log, resumed)
        run.train()
        run.finish()
    accelerator.wait_for_everyone()
    return Bundle.open(out)


def preview(config: TrainConfig, data_path: Path | str, out: Path | str, force: bool = False) -> dict[str, Any]:
    """What `fit` would do, found out by reading the data: their splits, the steps, and the encoders it starts from.

    Raises:
        UsageError: what `prepare_run` refuses, or `out` holds what the run would not replace.
        InputError: data that the model cannot take.
    """
    prepared = prepare_run(config, Path(data_path), draws_weights=False)
    there = (Path(out) / MANIFEST).is_file() and not force
    made_by = provenance(prepared.source, config.licence)
    bundle, state = _existing(Path(out), prepared, made_by, True) if there else (None, RunState())
    contract, task = prepared.contract, prepared.task
    for sample in prepared.samples:
        # Padding is where values are checked.
        collate([sample], contract)
    begun = f"goes on after epoch {state.epoch}" if not state.finished else "is finished already"
    return {
        "run": "starts" if bundle is None else begun,
        "data": str(data_path),
        "format": prepared.source.format,
        "splits": {n: split_counts(samples, contract, task) for n, samples in prepared.corpus.splits.items()},
        "training": {
            "items": len(prepared.samples),
            "steps_per_epoch": prepared.settings.accumulation.steps(prepared.batches),
            "epochs": config.epochs,
        },
        "evaluated": list(prepared.measured),
        "encoders": describe_sources(prepared.settings, prepared.model_config, bundle is None and config.init is None),
        "buckets": [b.name for b in contract.buckets],
    }


def split_counts(samples: Sequence[Sample], contract: Contract, task: Task) -> dict[str, int]:
    """Items, units, how many of those are labelled, and items of which there is nothing to read."""
    return {
        "items": len(samples),
        "units": sum(len(s.units) for s in samples),
        "labelled": sum(int(task.known(s.labels).sum()) for s in samples if s.labels is not None),
        "nothing_to_read": len(samples) - len(readable(samples, contract)),
    }


class Run:
    """The main phase: epochs, the choice of weights, and one commit per epoch."""

    def __init__(
        self,
        prepared: Prepared,
        bundle: Bundle | None,
        state: RunState,
        difficulty: dict[str, float] | None,
        progress: Progress,
        log: Log,
        resumed: bool,
    ):
        """`bundle` is None in every process but the first of a new run."""
        self.prepared, self.bundle, self.state, self.difficulty = prepared, bundle, state, difficulty
        self.progress, self.log = progress, log
        config = prepared.config
        seed_everything(config.seed)
        model = registry.get(config.system).build(prepared.model_config)
        set_statistics(model, prepared.unchanged)
        # The first process alone evaluates.
        measured = prepared.measured.values() if prepared.accelerator.is_main_process else ()
        self.phase = Phase(
            config,
            prepared.settings,
            model,
            prepared.contract,
            prepared.samples,
            prepared.accelerator,
            difficulty,
            measured,
            prepared.beside,
            None if resumed else config.init,
        )
        if resumed and bundle is not None:
            load_tensors(bundle, self.phase)
            for record in state.records:
                self.phase.end_epoch(record, passed=record is not state.records[-1])

    def train(self) -> None:
        """Runs the epochs that are left."""
        from accelerate.utils import broadcast_object_list

        config, accelerator = self.prepared.config, self.prepared.accelerator
        self.progress.start(config.title or config.system, config.epochs, "epoch", self.state.epoch)
        while self.state.epoch < config.epochs and not self._out_of_patience():
            record = self.phase.epoch(self.state.epoch)
            self.state.epoch += 1
            if accelerator.is_main_process:
                self._record(record)
            # Every process lowers its learning rate alike.
            self.phase.end_epoch(broadcast_object_list([record])[0])

    def finish(self) -> None:
        """Evaluates the kept weights and drops what only resuming needs."""
        if self.bundle is None or not self.prepared.accelerator.is_main_process:
            return
        if WEIGHTS not in self.bundle.manifest.files:
            keep = self.prepared.config.keep
            raise UsageError(
                f"keep.metric {keep.metric} on {keep.split} was never a number: choose another, or keep.rule=last"
            )
        self.state.finished = True
        kinds: tuple[Semantics, ...] = (
            ("single", "batch") if getattr(self.prepared.settings, "semantics", "single") == "batch" else ("single",)
        )
        device = str(self.prepared.accelerator.device)
        measured = [
            (split, kind, evaluate(self.bundle, samples, kind, device=device))
            for split, samples in self.prepared.measured.items()
            for kind in kinds
        ]
        found = [Evaluation(split=s, semantics=k, metrics=m.metrics, classes=m.classes()) for s, k, m in measured]
        with self.bundle.commit() as change:
            change.write(EVALUATION, dump_evaluations(found))
            change.manifest.provenance["result"] = _headline(found, change.manifest.provenance.get("epoch"))
            phase_state(change, self.state, self.phase)

    def _record(self, record: dict[str, Any]) -> None:
        config = self.prepared.config
        record["lr"] = self.phase.lr
        record["splits"] = {n: self.phase.evaluate(s, self.prepared.task) for n, s in self.prepared.measured.items()}
        self.state.records.append(record)
        better = self._better(record)
        last = self.state.epoch == config.epochs
        if better or last or self.state.epoch % config.save_every == 0 or self._patience_ran_out():
            self._commit(keep=better or config.keep.rule == "last")
        self.progress.end(summary(record))
        self.log(record)

    def _better(self, record: dict[str, Any]) -> bool:
        """Whether this epoch is the best so far by the configured metric; notes it."""
        keep = self.prepared.config.keep
        if keep.rule == "last" and keep.patience is None:
            return False
        measured = record["splits"][keep.split]
        if keep.metric not in measured:
            raise UsageError(f"keep.metric {keep.metric!r} is not measured, there are {list(measured)}")
        value = measured[keep.metric]
        if math.isnan(value):
            return False
        best = self.state.best_value
        if best is not None and not find(keep.metric).lost(value, best) > keep.margin:
            return False
        self.state.best_epoch, self.state.best_value = self.state.epoch, value
        return True

    def _commit(self, keep: bool) -> None:
        assert self.bundle is not None
        with self.bundle.commit() as change:
            if keep:
                save_weights(self.phase.kept, change.file(WEIGHTS))
                change.manifest.provenance["epoch"] = self.state.epoch
                for name, values in (
                    ("class_weights", self.phase.protocol.weight),
                    ("class_offsets", self.phase.protocol.offset),
                ):
                    change.manifest.provenance[name] = None if values is None else values.tolist()
            change.manifest.provenance["computed"] = _once_each(change.manifest.provenance, self.prepared, self.phase)
            if CONFIG not in change.manifest.files:
                change.write(CONFIG, dump_config(self.prepared.config))
                keep_tools(change, self.prepared.config.data)
                if self.difficulty is not None:
                    change.write(DIFFICULTY, json.dumps(self.difficulty))
            phase_state(change, self.state, self.phase)

    def _patience_ran_out(self) -> bool:
        keep = self.prepared.config.keep
        if keep.patience is None or self.state.best_epoch is None:
            return False
        return self.state.epoch - self.state.best_epoch >= keep.patience

    def _out_of_patience(self) -> bool:
        """The first process's view, known to all."""
        from accelerate.utils import broadcast_object_list

        return bool(broadcast_object_list([self._patience_ran_out()])[0])


def _existing(
    out: Path, prepared: Prepared, made_by: dict[str, Any], resume: bool
) -> tuple[Bundle, RunState] | tuple[None, RunState]:
    """The bundle of an interrupted or finished run of the same configuration and data, or None."""
    if not (out / MANIFEST).is_file():
        return None, RunState()
    bundle = Bundle.open(out)
    state = read_state(bundle)
    if state is None or not resume:
        raise UsageError(f"{out} already holds a bundle: pass --force to replace it, or another --out")
    before = _in_words(read_yaml(bundle.path(CONFIG)), prepared)
    now = yaml.safe_load(dump_config(prepared.config))
    # What exports keep in fp32 changes no weight.
    before["keep_fp32"] = now["keep_fp32"]
    if written_in_full(before["data"]):
        before, now = ({**c, "data": DataSpec.without_defaults(c["data"])} for c in (before, now))
    changed = first_difference(before, now)
    if changed:
        raise UsageError(f"{out} was trained with another {changed}: pass --force to start over, or another --out")
    made = bundle.manifest.provenance
    if made["data"]["fingerprint"] != made_by["data"]["fingerprint"]:
        raise UsageError(f"{out} was trained on other data: pass --force to start over, or another --out")
    for name, weights in starts(prepared.config, prepared.settings, prepared.data).items():
        # Bundles of before say it of `init` alone.
        if made.get(name, weights) != weights:
            raise UsageError(
                f"{out} was started from other weights than {name} has now: pass --force to start over, or another "
                "--out"
            )
    return bundle, state


def _once_each(provenance: dict[str, Any], prepared: Prepared, phase: Phase) -> list[dict[str, Any]]:
    """On what the run was computed; a resumed one perhaps on more than one device."""
    known = provenance.get("computed", [])
    now = describe(prepared.config, prepared.accelerator) | {"device_data": phase.keeps_data}
    return known if now in known else [*known, now]


def _in_words(before: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The configuration of a run as it would be written now: settings that came later have their defaults.

    Until 0.1 random encoders were asked for by naming none, and networks were never compiled.
    """
    balance = Balance().model_dump()
    later: dict[str, Any] = {"compile": False, "device_data": "auto", "group_by_length": False, "fast_dropout": False}
    later |= {"balance": balance}
    before = later | before
    random = {s.setting: RANDOM for s in prepared.settings.sources if s.value == RANDOM}
    protocol = {n: random.get(n) if value is None else value for n, value in before["protocol"].items()}
    model = registry.get(prepared.config.system).parse(before["model"]).model_dump(mode="json")
    return before | {"protocol": protocol, "model": model}


def _manifest(prepared: Prepared, made_by: dict[str, Any]) -> Manifest:
    system = registry.get(prepared.config.system)
    return Manifest(
        system=system.name,
        variant=system.variant_of(prepared.model_config),
        config=prepared.model_config.model_dump(mode="json"),
        task=prepared.task,
        contract=prepared.contract,
        features=feature_statistics(prepared.unchanged, prepared.contract, prepared.source.info["extractors"]),
        provenance=made_by,
    )


def _difficulty(prepared: Prepared, bundle: Bundle | None, progress: Progress) -> dict[str, float] | None:
    """What the protocol has to know of each item: from the resumed bundle, else found now and the same for all."""
    from accelerate.utils import broadcast_object_list

    if bundle is not None and DIFFICULTY in bundle.manifest.files:
        return json.loads(bundle.path(DIFFICULTY).read_text())
    protocol = protocol_class(prepared.config.system)(prepared.settings)
    dataset, first = prepared.corpus.info.get("dataset"), partial(_first_model, prepared, progress)
    data, reach = prepared.data, prepared.config.data.reach(prepared.data)
    return broadcast_object_list([protocol.find_difficulty(Before(data, reach, dataset, prepared.samples, first))])[0]


def _first_model(prepared: Prepared, progress: Progress, title: str, settings: Any, epochs: int) -> nn.Module:
    """A model like the run's own, trained with other protocol settings."""
    config = prepared.config
    seed_everything(config.seed)
    model = registry.get(config.system).build(prepared.model_config)
    set_statistics(model, prepared.unchanged)
    phase = Phase(config, settings, model, prepared.contract, prepared.samples, prepared.accelerator)
    progress.start(title, epochs, "epoch")
    for number in range(epochs):
        progress.end(summary(phase.epoch(number)))
    progress.close()
    return phase.kept


def _headline(found: Sequence[Evaluation], epoch: int | None) -> dict[str, Any]:
    """The last evaluated split in the exported semantics, in short."""
    single = [e for e in found if e.semantics == "single"]
    return {"epoch": epoch} | ({"split": single[-1].split} | main(single[-1].metrics) if single else {})


def summary(record: dict[str, Any]) -> str:
    """Loss and main metrics of an epoch in a few words."""
    parts = [f"loss {record['train']['total']:.4f}"]
    for split, metrics in record.get("splits", {}).items():
        parts.append(f"{split}: " + " ".join(f"{find(n).title} {find(n).text(v)}" for n, v in main(metrics).items()))
    return "  ".join(parts)
