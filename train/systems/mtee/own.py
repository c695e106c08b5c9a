"""What own data make of the recipe of mtee. Needs no torch."""

from __future__ import annotations

from typing import Any

from mer_export.errors import UsageError
from mer_export.models.mtee.config import SENTIMENT
from train.own_data import Own, Sections, buckets

LOSSES = {"classification": "ce", "multilabel": "bce", "regression": "l1"}


def mtee(own: Own) -> Sections:
    """Task, labels, widths and buckets; one label stands for a score."""
    found = own.facts
    low, high = found.scores
    limits = SENTIMENT.limits
    if not limits[0] <= low <= high <= limits[1]:
        raise UsageError(f"scores go from {low:g} to {high:g}, mtee predicts {limits}: bring them into it")
    used = list(found.modalities)
    if not used:
        raise UsageError(
            "mtee reads vectors of each modality, the data have none: name them in data.text, audio, vision"
        )
    model: dict[str, Any] = {f"{m}_dim": found.widths[m] for m in used}
    model |= {"task": found.kind, "labels": list(found.labels) or ["score"], "modalities": used, "standardise": used}
    model["buckets"] = buckets(found, {m: m for m in used})
    return {"model": model, "protocol": {"loss": LOSSES[str(found.kind)]}}
