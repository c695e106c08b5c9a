"""A recipe for data of one's own: what the data say of the network, over a small recipe of the system.

Widths, labels, modalities, speakers, lengths and splits come from the data, the rest from `presets/own/<system>.yaml`;
what is set on the command line goes before both. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mer_export import registry
from mer_export.data.facts import Facts, facts
from mer_export.data.open import open_corpus
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.tokenizer import load_tokenizer
from mer_export.errors import UsageError
from mer_export.overrides import apply_overrides
from mer_export.registry import first_problem, resolve
from mer_export.untrusted.places import Allowed
from train.config import OWN, TrainConfig, merged, read_settings, settled_config
from train.encoders import RANDOM, special_tokens
from train.recipe import recipe

TRAIN, VALID = "train", ("dev", "valid", "val", "validation")
"""Names of the splits that are trained on, and of those that weights are chosen on."""
METRICS = {"classification": "weighted_f1", "multilabel": "loss", "regression": "mae"}
"""What the best epoch is chosen by."""
PATIENCE = 20
SMALL_ENCODER = {"hidden": 64, "layers": 2, "heads": 4, "feed_forward": 128}
"""A text encoder from random weights; one from a folder is as its folder says."""

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Own:
    """What a system's part of a recipe is made of: the data, their section, what is said of training and network."""

    facts: Facts
    data: DataSpec
    protocol: Mapping[str, Any]
    model: Mapping[str, Any]

    def labels_of(self, system: str, *kinds: str) -> tuple[str, ...]:
        """The labels; raises UsageError where the data have labels of a kind that the system does not predict."""
        kind = self.facts.kind
        if kind not in kinds:
            raise UsageError(f"{system} predicts {' or '.join(kinds)}, the data are for {kind}: choose mtee")
        return self.facts.labels

    def encoder(self, setting: str, tokens: str) -> dict[str, Any]:
        """The section of an encoder that starts from random weights; nothing where a folder says it."""
        if self.protocol.get(setting) != RANDOM or self.data.tokenizer is None:
            return {}
        tokenizer = load_tokenizer(self.data.tokenizer)
        # Room for longer texts than these; a RoBERTa counts its positions from behind the padding token on.
        positions = 2 * max(self.facts.steps(tokens)[1], 64)
        return SMALL_ENCODER | special_tokens(tokenizer) | {"vocabulary": tokenizer.size, "positions": positions}


def own_config(
    system: str,
    data: Path,
    overrides: Iterable[str] = (),
    outside: Iterable[Path] | None = None,
    **values: Any,
) -> TrainConfig:
    """The configuration that fits a data set.

    Args:
        system: name in the registry.
        data: file or directory, in any format.
        outside: folders beside the data that paths in files may lead to.
        overrides: `a.b=value`; those of the data section say how the data are read, `data.text=null` leaves text out.
        **values: fields that go before everything, unless they are None.

    Raises:
        UsageError: the data have no labels, or what the system cannot take.
        InputError: the data cannot be read.
    """
    record = registry.get(system)
    sets = [*overrides, *(f"{name}={value}" for name, value in values.items() if value is not None)]
    said = apply_overrides(read_settings(OWN / f"{system}.yaml"), sets)
    allowed = Allowed.by(outside, apply_overrides({}, sets))
    contract = record.contract(record.config())
    spec = _spec(said.get("data") or {}).allowing(allowed).in_units_of(contract)
    corpus = open_corpus(data, spec)
    if contract.unit_dim is None and any(len(s.units) > 1 for s in corpus):
        raise UsageError(f"{data} holds whole dialogues in files that {system} does not read: train cmerc on them")
    found = facts(corpus)
    if found.kind is None:
        raise UsageError(
            f"{data} has no labels to train on: name their column in data.label, data.score or label_columns"
        )
    own = Own(found, spec, said.get("protocol") or {}, said.get("model") or {})
    sections = resolve(recipe(system).own)(own)
    sections["data"] = spec.model_dump(mode="json") | sections.get("data", {})
    run = {"title": f"{system} on {data.resolve().name}", **_splits(found, data, said)}
    settled = apply_overrides(merged(merged(said | {"data": {}}, sections), run), sets)
    return settled_config(settled, f"a recipe for {data}", allowed, data)


def _spec(section: Mapping[str, Any]) -> DataSpec:
    try:
        spec = DataSpec.model_validate(section)
    except ValidationError as error:
        raise UsageError(f"data: {first_problem(error)}") from None
    # A dialogue is packed where something makes tokens of it.
    said = {n: v for n, v in spec.model_dump().items() if n != "packing" or spec.tokenizer}
    return DataSpec.model_validate(said)


def _splits(found: Facts, data: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """Which splits are trained on and measured, and which epoch is kept."""
    labelled = [name for name, count in found.labelled.items() if count]
    train = said.get("train_splits") or ([TRAIN] if TRAIN in labelled else labelled)
    # One split alone may be called anything; of several, what has the labels may be what is tested on.
    if not said.get("train_splits") and TRAIN not in labelled and len(found.labelled) > 1:
        raise UsageError(
            f"{data} has labels in the splits {labelled}, none is called {TRAIN}: --set 'train_splits=[{labelled[0]}]'"
        )
    others = [name for name in labelled if name not in train]
    valid = next((name for name in others if name in VALID), None)
    keep: dict[str, Any] = {"rule": "last"}
    if valid is not None:
        keep = {"rule": "best", "split": valid, "metric": METRICS[str(found.kind)], "patience": PATIENCE}
    return {"train_splits": train, "evaluate_splits": others, "keep": keep}


def buckets(found: Facts, inputs: Mapping[str, str]) -> list[dict[str, int]]:
    """The median and the longest of every length, to export; `inputs` names the input of each sequence dim."""
    steps = {dim: found.steps(name) for dim, name in inputs.items()}
    pair = [{dim: sizes[i] for dim, sizes in steps.items()} for i in (0, 1)]
    return pair if pair[0] != pair[1] else pair[:1]
