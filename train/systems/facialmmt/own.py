"""What own data make of the recipe of facialmmt. Needs no torch."""

from __future__ import annotations

from typing import Any

from mer_export.data.facts import TOKENS
from mer_export.errors import UsageError
from train.own_data import Own, Sections, buckets


def facialmmt(own: Own) -> Sections:
    """Labels, widths and lengths; faces alone make the unimodal model."""
    found = own.facts
    labels = own.labels_of("facialmmt", "classification")
    if "text" in found.widths:
        raise UsageError(
            "facialmmt reads the words of a dialogue, not vectors: leave them out with data.text=null, and set "
            "data.tokenizer where there are sentences"
        )
    frames = [m for m in ("audio", "vision") if m in found.widths]
    used = [*(["text"] if TOKENS in found.shapes else []), *frames]
    if not used:
        raise UsageError("the data have nothing that facialmmt reads: sentences with data.tokenizer, audio or vision")
    inputs = {f"{m}_len": TOKENS if m == "text" else m for m in used}
    model: dict[str, Any] = {f"{m}_dim": found.widths[m] for m in frames} | {"labels": list(labels)}
    model |= {f"{m}_len": found.steps(m)[1] for m in frames} | {"standardise": frames}
    model |= {"variant": "vision"} if used == ["vision"] else {"variant": "fusion", "modalities": used}
    model["buckets"] = buckets(found, inputs)
    bert = own.encoder("text_encoder", TOKENS)
    return {"model": model | ({"bert": bert} if bert else {})}
