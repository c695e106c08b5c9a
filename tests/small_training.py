"""Every system trained in small: tiny networks on made-up samples, two epochs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest import mock

import mtee_bundles
import numpy as np
import small_emt
import small_facialmmt
import small_tab
import torch
from small_bundle import make_samples
from small_networks import NETWORKS
from torch import nn
from two_processes import preset

from mer_export import registry
from mer_export.contract import Contract
from mer_export.data.samples import Corpus, Sample
from mer_export.task import Task
from train import padding
from train.config import TrainConfig
from train.devices import computing, make_accelerator
from train.loop import Phase
from train.recipe import protocol_class, recipe
from train.seeds import seed_everything

CPU = torch.device("cpu")


def _dialogues(contract: Contract, config: Any) -> list[Sample]:
    return make_samples(10)


def _utterances(contract: Contract, config: Any) -> list[Sample]:
    return [small_emt.utterance(contract, seed) for seed in range(10)]


SMALL: dict[str, tuple[str, Callable[[Contract, Any], list[Sample]], tuple[str, ...]]] = {
    "cmerc": ("cmerc gru", _dialogues, ()),
    "emt": ("emt", _utterances, ("protocol.missing=0.3", "protocol.accumulate=1")),
    "tfr_net": ("tfr_net", _utterances, ("protocol.missing=0.3",)),
    "mult": ("mult", _utterances, ()),
    "facialmmt": (
        "facialmmt end_to_end",
        lambda contract, _: [s for seed in range(4) for s in small_facialmmt.utterances(contract, seed=seed)],
        ("protocol.gumbel=true", "protocol.colour_jitter=0.5", "protocol.face_encoder=random"),
    ),
    "tab": ("tab fusion", lambda contract, _: [small_tab.spoken(contract, seed) for seed in range(10)], ()),
    "mtee": ("mtee eea", lambda _, config: mtee_bundles.make_samples(config), ("protocol.loss=bce",)),
}
"""By system a small network, its samples, and settings."""


class Small(NamedTuple):
    """What a phase is made of; the last three of the items are to be measured."""

    config: TrainConfig
    settings: Any
    model: nn.Module
    task: Task
    contract: Contract
    items: list[Sample]
    difficulty: dict[str, float]


def small(system: str, *changes: str) -> Small:
    """A tiny network of a system and items for it."""
    name, samples_of, sets = SMALL[system]
    record = registry.get(system)
    model_config = record.parse(NETWORKS[name][1])
    base = preset(system, "threads=1", *sets, *changes)
    config = base.model_copy(update={"model": model_config.model_dump(mode="json")})
    settings = recipe(system).settings.model_validate(config.protocol)
    vectors = {label: np.ones(mtee_bundles.WORDS) for label in getattr(model_config, "labels", ())}
    contract = record.complete(record.contract(model_config), model_config, {"vectors": vectors})
    corpus = Corpus({"train": samples_of(contract, model_config)}, "made up")
    items = protocol_class(system)(settings).views(corpus, model_config).splits["train"]
    seed_everything(0)
    model = record.build(model_config)
    difficulty = {s.id: float(len(s.units)) for s in items[:-3]}
    return Small(config, settings, model, record.task(model_config), contract, items, difficulty)


def trained(system: str, wanted: str, *changes: str) -> tuple[Phase, list[object]]:
    """A phase after two epochs, and what they and the measuring of a split said."""
    config, settings, model, task, contract, items, difficulty = small(system, f"device_data={wanted}", *changes)
    measured = items[-3:]
    with computing(config, CPU):
        phase = Phase(
            config, settings, model, contract, items[:-3], make_accelerator(config), difficulty, measured=[measured]
        )
        # Nothing is padded any more where all of it is kept.
        once = mock.patch.object(padding, "collate", None) if phase.keeps_data else nullcontext()
        with once:
            said = [phase.epoch(number)["train"] for number in range(2)]
            return phase, [*said, phase.evaluate(measured, task)]
