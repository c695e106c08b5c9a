"""Rare classes: weights and offsets by hand, the losses of every system with them, and what refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Mer
from torch.nn import functional

from mer_export.data.samples import Sample
from mer_export.data.synthetic import synthesise
from mer_export.errors import UsageError
from train.balance import Balance
from train.config import load_preset
from train.protocol import Protocol
from train.recipe import protocol_class, recipe

COUNTS = np.array([90, 9, 1])
SINGLE: dict[str, dict[str, Any]] = {
    "cmerc": {"loss": "nll"},
    "mtee": {"loss": "ce"},
    "emt": {"text": {"lr": 1}, "audio": {"lr": 1}, "vision": {"lr": 1}, "other": {"lr": 1}},
    "facialmmt": {},
}
"""Systems that can be trained by cross-entropy of one class, with the settings that say so."""

PLAIN: dict[str, Any] = {
    "mtee": lambda scores, labels: -(functional.one_hot(labels, 3) * scores.log_softmax(-1)).sum(-1).mean(),
    "facialmmt": functional.cross_entropy,
}
"""The loss without a balance, to the last bit, where it is not that of log-probabilities."""


def protocol_of(system: str, balance: Balance) -> Protocol:
    """A protocol that has seen the classes of `COUNTS` in its training split."""
    found: Protocol = protocol_class(system)(recipe(system).settings.model_validate(SINGLE[system]))
    labels = np.repeat(np.arange(3), COUNTS)
    samples = [Sample(str(i), {}, (str(i),), labels[i : i + 1]) for i in range(len(labels))]
    model = SimpleNamespace(config=SimpleNamespace(labels=("a", "b", "c")))
    found.balance(balance, samples, model, torch.device("cpu"))
    return found


def test_the_effective_number_of_a_class_weighs_it():
    # 1 - 0.9^90, 1 - 0.9^9 and 1 - 0.9^1 tenths: 9.9992, 6.1258 and 1 units.
    raw = np.array([1 / 9.99923842, 1 / 6.12579511, 1.0])
    weights = Balance(rule="effective_number", beta=0.9).weights(COUNTS)
    np.testing.assert_allclose(weights, 3 * raw / raw.sum(), rtol=1e-7)
    assert Balance(rule="effective_number", beta=0).weights(COUNTS) == [1.0, 1.0, 1.0]


def test_logits_are_adjusted_by_the_log_of_the_share():
    offsets = Balance(rule="logit_adjusted", tau=0.5).offsets(COUNTS)
    np.testing.assert_allclose(offsets, 0.5 * np.log([0.9, 0.09, 0.01]), rtol=1e-12)


def test_a_class_without_units_counts_as_one_of_one_unit():
    empty = np.array([99, 0])
    assert Balance(rule="logit_adjusted").offsets(empty) == pytest.approx([np.log(0.99), np.log(0.01)])
    assert np.isfinite(Balance(rule="effective_number").weights(empty) or ()).all()


@pytest.mark.parametrize("system", SINGLE)
def test_the_loss_of_every_system_is_the_papers(system: str):
    scores = torch.log_softmax(torch.tensor([[1.0, 0.5, -1.0], [0.2, 0.1, 0.4], [2.0, -1.0, 0.0]]), dim=-1)
    labels = torch.tensor([0, 2, 1])
    plain = -scores[range(3), labels]
    unbalanced = protocol_of(system, Balance()).class_loss(scores, labels)
    assert torch.equal(unbalanced, PLAIN.get(system, functional.nll_loss)(scores, labels))
    rule = Balance(rule="effective_number", beta=0.9)
    weight = torch.tensor(rule.weights(COUNTS))[labels]
    weighed = protocol_of(system, rule).class_loss(scores, labels)
    assert weighed.item() == pytest.approx(((weight * plain).sum() / weight.sum()).item(), rel=1e-6)
    shares = torch.tensor([0.9, 0.09, 0.01])
    # Menon et al. 2021, equation 10: log(1 + sum of (pi_y' / pi_y)^tau * exp(f_y' - f_y) over the other classes).
    ratios = (shares[None] / shares[labels][:, None]) * torch.exp(scores - scores[range(3), labels][:, None])
    adjusted = protocol_of(system, Balance(rule="logit_adjusted")).class_loss(scores, labels)
    assert adjusted.item() == pytest.approx(ratios.sum(1).log().mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("preset", "loss"),
    [
        ("cmerc/meld", "cmerc has protocol.loss=focal"),
        ("m3net/iemocap", "cmerc has protocol.class_frequencies"),
        ("mtee/mosei", "mtee has protocol.loss=bce"),
        ("emt/mosi", "emt has the loss of a regression task"),
        ("tab/iemocap", "tab has a margin loss"),
    ],
)
def test_a_loss_that_is_no_plain_cross_entropy_is_not_balanced(preset: str, loss: str):
    with pytest.raises(
        UsageError, match=f"balance.rule logit_adjusted is for a plain cross-entropy of one class, {loss}"
    ):
        load_preset(preset, ["balance.rule=logit_adjusted"])


def test_a_bundle_is_measured_by_the_loss_that_it_was_trained_by(mer: Mer, tmp_path: Path):
    data, out = tmp_path / "data", tmp_path / "o"
    synthesise("cmerc", "meld", data, dialogues=24, seed=0)
    sets = ("epochs=1", "protocol.loss=nll", "balance.rule=logit_adjusted", "model.width=16", "model.hidden=16")
    words = [w for s in sets for w in ("--set", s)]
    code, _, err = mer("train", "cmerc", "--preset", "synthetic/cmerc_meld", "--data", data, "--out", out, *words, "-q")
    assert code == 0, err
    provenance = json.loads((out / "bundle.json").read_text())["provenance"]
    assert provenance["class_weights"] is None
    assert np.exp(provenance["class_offsets"]).sum() == pytest.approx(1)
    epoch = json.loads((out / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    final = json.loads((out / "train" / "evaluation.json").read_text())
    (semantics,) = {*final["test"]} & {"batch"} or {"single"}
    assert final["test"][semantics]["loss"] == pytest.approx(epoch["splits"]["test"]["loss"], abs=1e-3)
