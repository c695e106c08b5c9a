"""What own data make of the recipes of emt, tfr_net and mult. Needs no torch."""

from __future__ import annotations

from typing import Any

from mer_export.data.facts import TOKENS
from mer_export.errors import UsageError
from mer_export.models.utterance import SCALES
from train.own_data import Own, Sections, buckets

KERNELS = (5, 3, 1)
"""Widths of a convolution over time, the widest that fits is taken."""


def emt(own: Own) -> Sections:
    """Labels, widths and buckets of emt."""
    return {"model": _utterances(own, "emt") | {"buckets": buckets(own.facts, _inputs(own))}}


def mult(own: Own) -> Sections:
    """Labels, widths and array lengths of mult."""
    return {"model": _utterances(own, "mult") | _arrays(own)}


def tfr_net(own: Own) -> Sections:
    """Labels, widths and array lengths of tfr_net."""
    return {"model": _utterances(own, "tfr_net") | _arrays(own)}


def _inputs(own: Own) -> dict[str, str]:
    """The input that gives the length of each modality: token ids where there are any."""
    found = {f"{m}_len": m for m in own.facts.modalities}
    return {"text_len": TOKENS} | {d: m for d, m in found.items() if m != "text"} if _tokens(own) else found


def _tokens(own: Own) -> bool:
    return TOKENS in own.facts.shapes


def _utterances(own: Own, system: str) -> dict[str, Any]:
    labels = own.labels_of(system, "classification", "regression")
    inputs = _inputs(own)
    vectors = [m for m in inputs.values() if m != TOKENS]
    model: dict[str, Any] = {"labels": list(labels)}
    if own.facts.kind == "regression":
        model["scale"] = _scale(own)
    model |= {"modalities": [d.removesuffix("_len") for d in inputs], "standardise": vectors}
    model |= {f"{m}_dim": own.facts.widths[m] for m in vectors}
    if not _tokens(own):
        return model | {"bert": None}
    bert = own.encoder("text_encoder", TOKENS)
    return model | ({"bert": bert} if bert else {})


def _arrays(own: Own) -> dict[str, Any]:
    arrays = {dim: own.facts.steps(name)[1] for dim, name in _inputs(own).items()}
    kernels = {m: next(k for k in KERNELS if k <= arrays.get(f"{m}_len", 1)) for m in ("audio", "vision")}
    return {"arrays": arrays, "kernels": {"text": 1, **kernels}, "buckets": []}


def _scale(own: Own) -> str:
    """The narrowest published scale that holds the scores."""
    low, high = own.facts.scores
    scales = sorted(SCALES, key=lambda s: SCALES[s].limits[1])
    found = next((s for s in scales if SCALES[s].limits[0] <= low and high <= SCALES[s].limits[1]), None)
    if found is None:
        widest = SCALES[scales[-1]].limits
        raise UsageError(f"scores go from {low:g} to {high:g}, the widest scale is {widest}: bring them into it")
    return found
