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
    def measured(self) -> dict[str, list[Sample]]:
        """The labelled splits that are evaluated."""
        return {n: self.corpus.splits[n] for n in self.config.evaluate_splits if n in self.corpus.splits}


def prepare(config: TrainConfig, data: Path, draws_weights: bool) -> Prepared:
    """Reads the data and holds the configuration against them.

    Raises:
        UsageError: an encoder is missing, the training split is empty, or a split that is named is not evaluated.
        InputError: data that the model cannot take.
        NotAvailableError: no such device.
    """
    system = registry.get(config.system)
    model_config = system.parse(config.model)
    task = system.task(model_config)
    settings = recipe(config.system).settings.model_validate(config.protocol)
    check_sources(settings, model_config, draws_weights)
    contract = system.contract(model_config)
    source = open_corpus(data, config.data.for_model(contract), labels=task.labels)
    corpus = protocol_class(config.system)(settings).views(source, model_config)
    samples = readable(labelled(corpus, config.train_splits, task), contract)
    if lacking := [n for n in settings.beside if not corpus.splits.get(n)]:
        raise UsageError(f"protocol reads the split {lacking[0]!r}, there are {list(corpus.splits)}")
    _say_unread(source, contract, task)
    if not samples:
        raise UsageError(f"{data}: no labelled item in the training split {list(config.train_splits)}")
    chosen = config.keep.rule == "best" or config.keep.patience is not None
    if chosen and config.keep.split not in {*corpus.splits} & {*config.evaluate_splits}:
        raise UsageError(f"keep.split {config.keep.split!r} is not evaluated: there are {list(corpus.splits)}")
    if config.plateau is not None and config.plateau.split not in {*corpus.splits} & {*config.evaluate_splits}:
        raise UsageError(f"plateau.split {config.plateau.split!r} is not evaluated: there are {list(corpus.splits)}")
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


def _say_unread(corpus: Corpus, contract: Contract, task: Task) -> None:
    """Warns of units that training does without."""
    scored = f"counted as {task.unanswered}, as the original does" if task.unanswered else "left out of metrics"
    named = ", ".join(contract.modalities)
    for split, samples in corpus.splits.items():
        if unread := len(samples) - len(readable(samples, contract)):
            log.warning("%s: %d items have none of %s: not trained on, %s", split, unread, named, scored)


def labelled(corpus: Corpus, splits: Sequence[str], task: Task) -> list[Sample]:
    """The samples of these splits of which something is known."""
    samples = [s for name in splits for s in corpus.split(name)]
    return [s for s in samples if s.labels is not None and task.known(s.labels).any()]
