"""Data that stay on the device: batches, weights and losses are those of batches that were padded one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import mtee_bundles
import numpy as np
import pytest
import small_emt
import small_facialmmt
import small_tab
import torch
from small_bundle import CONFIG, make_samples
from small_networks import NETWORKS
from two_processes import preset

from mer_export import machine, registry
from mer_export.contract import Contract
from mer_export.data.samples import Corpus, Sample
from mer_export.errors import UsageError
from train import padding
from train.devices import computing, make_accelerator
from train.loop import Phase
from train.padding import FromSamples, Kept
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


@pytest.mark.parametrize("system", SMALL)
def test_training_on_data_that_stay_on_the_device_changes_no_bit(system: str) -> None:
    never, always = _trained(system, "never"), _trained(system, "always")
    assert not never[0].keeps_data
    assert always[0].keeps_data
    assert json.dumps(never[1]) == json.dumps(always[1])
    weights, others = (phase.model.state_dict() for phase, _ in (never, always))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def _trained(system: str, wanted: str) -> tuple[Phase, list[object]]:
    """A phase after two epochs, and what they and the measuring of a split said."""
    name, samples_of, sets = SMALL[system]
    record = registry.get(system)
    model_config = record.parse(NETWORKS[name][1])
    base = preset(system, f"device_data={wanted}", "threads=1", *sets)
    config = base.model_copy(update={"model": model_config.model_dump(mode="json")})
    settings = recipe(system).settings.model_validate(config.protocol)
    vectors = {label: np.ones(mtee_bundles.WORDS) for label in getattr(model_config, "labels", ())}
    contract = record.complete(record.contract(model_config), model_config, {"vectors": vectors})
    corpus = Corpus({"train": samples_of(contract, model_config)}, "made up")
    items = protocol_class(system)(settings).views(corpus, model_config).splits["train"]
    seed_everything(0)
    model = record.build(model_config)
    difficulty = {s.id: float(len(s.units)) for s in items[:-3]}
    measured = items[-3:]
    with computing(config, CPU):
        phase = Phase(
            config, settings, model, contract, items[:-3], make_accelerator(config), difficulty, measured=[measured]
        )
        # Nothing is padded any more where all of it is kept.
        once = mock.patch.object(padding, "collate", None) if phase.keeps_data else nullcontext()
        with once:
            said = [phase.epoch(number)["train"] for number in range(2)]
            return phase, [*said, phase.evaluate(measured, record.task(model_config))]


def test_batches_are_cut_from_what_is_kept_and_others_are_padded_as_usual() -> None:
    system = registry.get("cmerc")
    contract = system.contract(system.parse(CONFIG))
    samples, others = make_samples(6), make_samples(2, seed=1)
    kept, usual = Kept([samples[:4], samples[4:]], contract, CPU), FromSamples()
    for batch in ([samples[2]], samples[3:0:-1], [samples[3], samples[5]], [samples[0], others[0]]):
        found, wanted = kept.inputs(batch, contract), usual.inputs(batch, contract)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) and found[n].is_contiguous() for n in wanted)


def test_data_that_do_not_fit_are_refused_where_they_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    system = registry.get("cmerc")
    contract, samples = system.contract(system.parse(CONFIG)), make_samples(6)
    needed = padding.padded_bytes(samples, contract)
    assert needed == sum(t.numel() * t.element_size() for t in FromSamples().inputs(samples, contract).values())
    monkeypatch.setattr(machine, "available_bytes", lambda: needed - 1)
    with pytest.raises(UsageError, match=r"device_data is always, .* take \d+ MiB, \d+ are free on cpu"):
        padding.padding("always", [samples], contract, CPU)


@pytest.mark.parametrize(("part", "kept"), [(1.01, True), (0.99, False)])
def test_a_gpu_keeps_data_unasked_where_they_take_a_quarter_of_its_free_memory_at_most(
    part: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = registry.get("cmerc")
    contract, samples = system.contract(system.parse(CONFIG)), make_samples(6)
    free = int(part * padding.padded_bytes(samples, contract) / padding.SHARE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    # A device without values, as there need be no GPU.
    monkeypatch.setattr(padding, "Kept", lambda splits, contract, device: "kept")
    found = padding.padding("auto", [samples], contract, torch.device("cuda"))
    assert (found == "kept") == kept
    assert isinstance(padding.padding("auto", [samples], contract, CPU), FromSamples)
