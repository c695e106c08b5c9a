"""Data that stay on the device: batches, weights and losses are those of batches that were padded one by one."""

from __future__ import annotations

import json

import pytest
import torch
from small_bundle import CONFIG, make_samples
from small_training import CPU, SMALL, trained

from mer_export import machine, registry
from mer_export.errors import UsageError
from train import padding
from train.padding import FromSamples, Kept


@pytest.mark.parametrize("system", SMALL)
def test_training_on_data_that_stay_on_the_device_changes_no_bit(system: str) -> None:
    never, always = trained(system, "never"), trained(system, "always")
    assert not never[0].keeps_data
    assert always[0].keeps_data
    assert json.dumps(never[1]) == json.dumps(always[1])
    weights, others = (phase.model.state_dict() for phase, _ in (never, always))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


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
