"""What training measured of the weights that it kept: `train/evaluation.json` of a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field, ValidationError

from mer_export.bundle import Bundle, Strict
from mer_export.contract import Semantics
from mer_export.errors import BundleError
from mer_export.metrics.tally import ClassTable

EVALUATION = "train/evaluation.json"
CLASSES = "classes"
"""Beside the semantics of a split: the tables of its classes, by semantics."""


class Evaluation(Strict):
    """Metrics of one split in one semantics, and how each label was decided."""

    split: str
    semantics: Semantics
    metrics: dict[str, float]
    classes: list[ClassTable] = Field(default_factory=list)


def dump_evaluations(found: Sequence[Evaluation]) -> str:
    """As JSON: `{split: {semantics: metrics, "classes": {semantics: tables}}}`."""
    splits: dict[str, dict[str, object]] = {}
    for one in found:
        split = splits.setdefault(one.split, {})
        tables = split.pop(CLASSES, {})
        assert isinstance(tables, dict)
        split[one.semantics] = one.metrics
        split[CLASSES] = tables | {one.semantics: [t.model_dump(mode="json") for t in one.classes]}
    return json.dumps(splits, indent=1)


def read_evaluations(bundle: Bundle) -> list[Evaluation]:
    """Those of a bundle, in order; none where it was not trained here. Until 0.1 there were no tables of classes.

    Raises:
        BundleError: damaged, or of another form.
    """
    if EVALUATION not in bundle.manifest.files:
        return []
    try:
        splits = json.loads(bundle.path(EVALUATION).read_bytes())
        return [
            Evaluation.model_validate(
                {
                    "split": split,
                    "semantics": semantics,
                    "metrics": metrics,
                    "classes": kinds.get(CLASSES, {}).get(semantics, []),
                }
            )
            for split, kinds in splits.items()
            for semantics, metrics in kinds.items()
            if semantics != CLASSES
        ]
    except (ValueError, AttributeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise BundleError(f"{bundle.root}: {EVALUATION} cannot be read ({first}): train it again") from None
