"""From golden cases about data and metrics of emt to this project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from case import Case

from mer_export.data.formats.mmsa.normalise import normalise
from mer_export.data.formats.mmsa.reader import array_lengths, split_samples
from mer_export.data.missing import Incomplete, incomplete
from mer_export.metrics.measure import area_over_rates, measure
from mer_export.models.utterance import MODALITIES, SCALES


def masks(case: Case) -> dict[str, Any]:
    """Incomplete views of every split that the case has, at every setting of the rates."""
    seeds = dict(zip(MODALITIES, case.config["missing_seed"], strict=True))
    found: dict[str, Any] = {}
    for split in sorted({n.split(".")[0].removeprefix("raw_") for n in case.inputs}):
        prefix = f"raw_{split}."
        raw = {n.removeprefix(prefix): a for n, a in case.inputs.items() if n.startswith(prefix)}
        items, arrays = split_samples(raw, split), array_lengths(raw)
        for index, rates in enumerate(case.config["missing_rate"]):
            views = incomplete(items, dict(zip(MODALITIES, rates, strict=True)), arrays, seeds)
            found |= {f"{split}.{index}.{n}": a for n, a in _padded(views, raw, arrays).items()}
    return found


def _padded(views: list[Incomplete], raw: dict[str, np.ndarray], arrays: dict[str, int]) -> dict[str, np.ndarray]:
    text = raw["text_bert"].astype(np.float32)
    found = {"seq_lens": np.asarray(list(arrays.values())), "text_m": text.copy()}
    found["text_missing_mask"] = np.zeros_like(text[:, 0])
    for row, view in enumerate(views):
        n = len(view.kept["text"])
        found["text_m"][row, 0, :n] = view.inputs["input_ids"]
        found["text_missing_mask"][row, :n] = view.kept["text"]
    for m in ("audio", "vision"):
        shape = raw[m].shape
        full, part = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        real, kept = np.zeros(shape[:2], np.int64), np.zeros(shape[:2], np.int64)
        for row, view in enumerate(views):
            n = len(view.kept[m])
            full[row, :n], part[row, :n] = view.complete[m], view.inputs[m]
            real[row, :n], kept[row, :n] = 1, view.kept[m]
        found |= {m: full, f"{m}_m": part, f"{m}_mask": real, f"{m}_missing_mask": kept}
    return found


def normalisation(case: Case) -> dict[str, Any]:
    """The pickle's arrays before and after."""
    content: dict[str, dict[str, Any]] = {}
    for name, array in case.inputs.items():
        split, key = name.split(".")
        content.setdefault(split, {})[key] = array
    after = normalise(content)
    found = {f"{split}.{m}": after[split][m] for split in after for m in ("audio", "vision")}
    for name, array in found.items():
        assert array.dtype == case.inputs[name].dtype, f"{name} became {array.dtype}"
    return found


METRICS = {
    "mosi": {
        "has0_acc_2": "Has0_acc_2",
        "has0_f1": "Has0_F1_score",
        "non0_acc_2": "Non0_acc_2",
        "non0_f1": "Non0_F1_score",
        "acc_5": "Mult_acc_5",
        "acc_7": "Mult_acc_7",
        "mae": "MAE",
        "corr": "Corr",
    },
    "sims": {
        "acc_2": "Mult_acc_2",
        "acc_3": "Mult_acc_3",
        "acc_5": "Mult_acc_5",
        "f1": "F1_score",
        "mae": "MAE",
        "corr": "Corr",
    },
}

SCALE_OF = {"mosi": "mosi", "mosei": "mosi", "sims": "sims"}
"""By the data set."""


def published(scale: str, found: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Metrics under the authors' names for a scale; theirs are fractions."""
    names = METRICS[scale]
    return {names[n]: np.asarray([v if n in ("mae", "corr") else v / 100]) for n, v in found.items()}


def metrics(case: Case) -> dict[str, Any]:
    """Metrics of the data sets that the case has, and the area under curves over the missing rate."""
    found: dict[str, Any] = {}
    for dataset in (d for d in SCALE_OF if f"{d}_pred" in case.inputs):
        scale = SCALE_OF[dataset]
        values = measure(SCALES[scale], case.inputs[f"{dataset}_true"], case.inputs[f"{dataset}_pred"][:, None])
        found |= {f"{dataset}.{n}": v for n, v in published(scale, values).items()}
    for name, curve in case.inputs.items():
        if name.startswith("curve_"):
            found[name.replace("curve", "auilc")] = area_over_rates(curve, case.config["rate_step"]).round(1)
    return found


ADAPTERS = {
    "missing-data generation": masks,
    "SIMS normalisation": normalisation,
    "metrics": metrics,
}
