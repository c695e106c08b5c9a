"""What a training run starts from: data, network and settings that were read and held against each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_export import registry
from mer_export.contract import Contract
from mer_export.data.open import open_corpus
from mer_export.data.samples import Corpus, Sample, readable
from mer_export.data.word_vectors import vectors_of
from mer_export.errors import UsageError
from mer_export.task import Task
from train.config import TrainConfig
from train.devices import make_accelerator
from train.encoders import Settings, check_sources
from train.recipe import protocol_class, recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.protocol import Protocol

log = logging.getLogger("mer")


@dataclass
class Prepared:
    """What stays the same through a run."""

    config: TrainConfig
    model_config: Any
    settings: Settings
    contract: Contract
    task: Task
    source: Corpus
    """The data as read."""
    corpus: Corpus
    """The data as the protocol sees them."""
    samples: list[Sample]
    data: Path
    accelerator: Accelerator

    @property
    def unchanged(self) -> list[Sample]:
        """The training items as read."""
        return readable(labelled(self.source, self.config.train_splits, self.task), self.contract)

    @property
    def beside(self) -> dict[str, list[Sample]]:
        """The splits that the settings name beside those that are trained on."""
        named = self.settings.beside
        return {n: readable(labelled(self.corpus, [n], self.task), self.contract) for n in named}

    @property
    def batches(self) -> int:
        """How many batches of an epoch over all training items each process has."""
        protocol: Protocol = protocol_class(self.config.system)(self.settings)
        protocol.beside = self.beside
        return protocol.batches_each(self.samples, self.config.batch, self.model_config, self.accelerator.num_processes)

    @property
    def measured(self) -> dict[str, list[Sample]]:
        """The splits that are evaluated."""
        return {n: self.corpus.splits[n] for n in self.config.evaluate_splits if n in self.corpus.splits}


def prepare_run(config: TrainConfig, data: Path, draws_weights: bool) -> Prepared:
    """As `prepare`, of a configuration that is to be trained.

    Raises:
        UsageError: two settings contradict each other, a split that is named is not evaluated, one that is evaluated
            has no labels, or an epoch ends before its first step.
        InputError, NotAvailableError: as `prepare` does.
    """
    prepared = prepare(config, data, draws_weights)
    _check_rules(prepared)
    for name in prepared.measured:
        if not readable(labelled(prepared.corpus, [name], prepared.task), prepared.contract):
            raise UsageError(f"split {name!r} has no labels to measure by: leave it out of evaluate_splits")
    batches, accumulation = prepared.batches, prepared.settings.accumulation
    if not accumulation.steps(batches):
        raise UsageError(
            f"an epoch has fewer batches ({batches}) than make a step (protocol.accumulate={accumulation.every}): "
            "lower protocol.accumulate or batch"
        )
    return prepared


def prepare(config: TrainConfig, data: Path, draws_weights: bool) -> Prepared:
    """Reads the data and holds the configuration against them.

    Raises:
        UsageError: an encoder is missing, a setting of the protocol is of another network, the data have not the fold
            that is asked for, or the training split is empty.
        InputError: data that the model cannot take.
        NotAvailableError: no such device.
    """
    system = registry.get(config.system)
    model_config = system.parse(config.model)
    task = system.task(model_config)
    settings = recipe(config.system).settings.model_validate(config.protocol)
    check_sources(settings, model_config, draws_weights)
    protocol: Protocol = protocol_class(config.system)(settings)
    protocol.check(model_config)
    contract = system.contract(model_config)
    source = open_corpus(data, config.data.for_model(contract), labels=task.labels)
    _refuse_folds(config, source, data)
    corpus = protocol.views(source, model_config)
    samples = readable(labelled(corpus, config.train_splits, task), contract)
    if lacking := [n for n in settings.beside if not corpus.splits.get(n)]:
        raise UsageError(f"protocol reads the split {lacking[0]!r}, there are {list(corpus.splits)}")
    _say_unread(source, contract, task)
    if not samples:
        raise UsageError(f"{data}: no labelled item in the training split {list(config.train_splits)}")
    vectors = vectors_of(config.data, (data if data.is_dir() else data.parent, Path()))
    return Prepared(
        config=config,
        model_config=model_config,
        settings=settings,
        contract=system.complete(contract, model_config, vectors),
        task=task,
        source=source,
        corpus=corpus,
        samples=samples,
        data=data,
        accelerator=make_accelerator(config),
    )


def _refuse_folds(config: TrainConfig, source: Corpus, data: Path) -> None:
    """Raises UsageError for a fold of data that say their splits themselves: every fold would be the same run."""
    asked = config.data.context.fold if config.data.context is not None else None
    if asked is not None and source.info.get("fold") != asked:
        raise UsageError(
            f"data.context.fold is {asked}, {data} has splits of its own and no folds: leave --fold out, or pass "
            "--set data.context.fold=null"
        )


def _check_rules(prepared: Prepared) -> None:
    """Holds the rules that follow a measured split against what is measured, and against each other."""
    config, of_system = prepared.config, prepared.settings.rate_rules
    rates = {"plateau": config.plateau, "warm_up": config.warm_up, **of_system}
    given = [name for name, rule in rates.items() if rule is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} both set the learning rate: leave one out")
    keep = config.keep if config.keep.rule == "best" or config.keep.patience is not None else None
    for name, rule in {"keep": keep, "plateau": config.plateau, **of_system}.items():
        if rule is not None and rule.split not in prepared.measured:
            raise UsageError(f"{name}.split {rule.split!r} is not evaluated: there are {list(prepared.corpus.splits)}")
    rising = [m.name for m in prepared.task.family.metrics if m.better == "higher"]
    for name, rule in of_system.items():
        if rule.metric.partition("/")[0] not in rising:
            raise UsageError(f"{name}.metric {rule.metric!r} is no metric of which more is better, there are {rising}")


def _say_unread(corpus: Corpus, contract: Contract, task: Task) -> None:
    """Warns of units that training does without."""
    scored = f"counted as {task.unanswered}, as the original does" if task.unanswered else "left out of metrics"
    named = ", ".join(contract.modalities)
    for split, samples in corpus.splits.items():
        if unread := len(samples) - len(readable(samples, contract)):
            log.warning("%s: %d items have none of %s: not trained on, %s", split, unread, named, scored)


def labelled(corpus: Corpus, splits: Sequence[str], task: Task) -> list[Sample]:
    """The samples of these splits of which something is known; raises UsageError where that is of another kind."""
    found = []
    for sample in (s for name in splits for s in corpus.split(name)):
        if sample.labels is not None and task.known(sample.labels).any():
            task.refuse_others(sample.labels, sample.id)
            found.append(sample)
    return found
