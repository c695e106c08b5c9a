"""Networks of fewer modalities: no input, width or length of the others, and answers that depend on the item alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import mtee_bundles
import numpy as np
import pytest
import small_bundle
import small_emt
import small_facialmmt
import torch

from mer_export import registry
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import UnsupportedError, UsageError

MODALITIES = ("text", "audio", "vision")
SUBSETS = [c for n in (1, 2) for c in combinations(MODALITIES, n)]
MTEE = ("eea", "rnn_ef", "rnn_lf", "rnn_eflf", "mult", "transformer", "transformer_time")
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cmerc": ("cmerc", small_bundle.CONFIG),
    **{n: small_emt.CONFIGS[n] for n in ("emt", "emt vectors", "mult", "mult vectors", "tfr_net", "tfr_net vectors")},
    **{f"mtee {n}": ("mtee", mtee_bundles.BASE | mtee_bundles.CONFIGS[n]) for n in MTEE},
    "facialmmt": ("facialmmt", small_facialmmt.VARIANTS["fusion"]),
}
CASES = [(name, used) for name in NETWORKS for used in SUBSETS]


def narrowed(name: str, used: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """A network of some modalities, with nothing said of the others."""
    system, values = NETWORKS[name]
    others = [m for m in MODALITIES if m not in used]
    gone = {f"{m}_dim" for m in others} | ({"bert"} if "text" in others and system != "facialmmt" else set())
    kept: dict[str, Any] = {n: v for n, v in values.items() if n not in gone} | {"modalities": list(used)}
    for section in ("buckets", "arrays"):
        if section in kept:
            kept[section] = _without(kept[section], others)
    return system, kept


def _without(value: Any, others: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {n: v for n, v in value.items() if n.removesuffix("_len") not in others}
    return [_without(v, others) for v in value] if isinstance(value, list | tuple) else value


def drawn(contract: Contract, seed: int) -> Sample:
    """An item of random content, shorter than the first bucket."""
    random = np.random.default_rng(seed)
    lengths = {d: int(random.integers(max(2, n - 3), n)) for d, n in contract.buckets[0].items()}
    inputs: dict[str, np.ndarray] = {}
    for spec in contract.features:
        shape = tuple(lengths[d] if isinstance(d, str) else d for d in spec.dims[1:])
        whole = random.integers(0, spec.below, shape) if spec.below else random.normal(size=shape)
        inputs[spec.name] = whole.astype(spec.dtype)
    if "text_span" in inputs:
        inputs["text_span"] = np.asarray([1, 2])
    units = tuple(f"u{i}" for i in range(lengths.get("utterances", 1)))
    return Sample(f"d{seed}", inputs, units)


def answers(model: torch.nn.Module, contract: Contract, samples: list[Sample], lengths: Any = None) -> list[np.ndarray]:
    arrays = {n: torch.from_numpy(a) for n, a in collate(samples, contract, lengths).items()}
    with torch.no_grad():
        found = model(**arrays).numpy()
    return [row[: len(s.units)] if contract.unit_dim else row for s, row in zip(samples, found, strict=True)]


@pytest.mark.parametrize(("name", "used"), CASES, ids=lambda v: v if isinstance(v, str) else "+".join(v))
def test_a_network_reads_the_modalities_that_it_has_and_nothing_else(name: str, used: tuple[str, ...]) -> None:
    system_name, values = narrowed(name, used)
    system = registry.get(system_name)
    config = system.parse(values)
    contract = system.contract(config)
    if system.shared and name == "mtee eea":
        contract = mtee_bundles.contract_of(config)
    assert contract.modalities == used
    gone = [m for m in MODALITIES if m not in used]
    assert not [s.name for s in contract.inputs if s.name.split("_")[0] in gone]
    assert not [d for b in contract.buckets for d in b if d.removesuffix("_len") in gone]
    torch.manual_seed(0)
    model = system.build(config)
    assert not [n for n, _ in model.named_parameters() if {*re.split(r"[._]", n)} & {*gone}]
    assert ("text" in used) or not hasattr(model, "bert") or model.bert is None
    samples = [drawn(contract, seed) for seed in (1, 2)]
    bucket = contract.buckets[-1]
    alone = [answers(model, contract, [s], bucket)[0] for s in samples]
    together = answers(model, contract, samples[::-1], bucket)[::-1]
    for one, beside in zip(alone, together, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(beside, one, rtol=0, atol=1e-5)
    for bucket in contract.buckets:
        np.testing.assert_allclose(answers(model, contract, samples[:1], bucket)[0], alone[0], rtol=0, atol=1e-5)
    assert np.abs(alone[0][..., :1] - alone[1][..., :1].mean()).max() > 1e-6


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("mtee eea",)])
def test_no_foreign_checkpoint_has_fewer_modalities(name: str) -> None:
    system_name, values = narrowed(name, ("text", "audio"))
    system = registry.get(system_name)
    config = system.parse(values)
    with pytest.raises(UnsupportedError, match="modalities"):
        registry.resolve(system.weights).renames(config)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("emt vectors", {"modalities": ["audio", "audio"]}, "modalities repeat"),
        ("emt", {"modalities": ["audio"]}, "bert reads text, the modalities are"),
        ("emt vectors", {"modalities": ["audio"], "standardise": ["vision"]}, "standardise names"),
        ("cmerc", {"modalities": ["audio"], "standardise": ["text"]}, "standardise names"),
        ("mult vectors", {"arrays": {"text_len": 9}}, "arrays lacks"),
        ("mtee rnn_lf", {"modalities": ["text"], "standardise": ["audio"]}, "standardise names"),
        ("facialmmt", {"variant": "vision", "modalities": ["vision"]}, "modalities are of variants fusion"),
        ("facialmmt", {"modalities": []}, "modalities"),
    ],
)
def test_a_choice_that_contradicts_itself_is_refused(name: str, changes: dict[str, Any], sentence: str) -> None:
    system, values = NETWORKS[name]
    with pytest.raises(UsageError, match=sentence):
        registry.get(system).parse(values | changes)
