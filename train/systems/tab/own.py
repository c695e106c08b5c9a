"""What own data make of the recipe of tab. Needs no torch."""

from __future__ import annotations

from typing import Any

from mer_export.data.shapes.context import WINDOW
from mer_export.errors import UsageError
from mer_export.models.tab.config import BRANCHES
from train.own_data import Own, Sections, buckets

INPUTS = {"text": "text_tokens", "audio": "audio_tokens", "tab": WINDOW}


def tab(own: Own) -> Sections:
    """The variant that reads what there is, labels, widths and buckets."""
    found, context = own.facts, own.data.context
    labels = own.labels_of("tab", "classification")
    there = tuple(b for b, name in INPUTS.items() if name in found.shapes)
    variant = next((v for v, branches in BRANCHES.items() if branches == there), None)
    if variant is None or context is None:
        wants = " or ".join("+".join(b) for b in BRANCHES.values())
        raise UsageError(f"the data have {'+'.join(there) or 'nothing'} for tab, it reads {wants}: see docs/data.md")
    model: dict[str, Any] = {"variant": variant, "labels": list(labels), "context": context.size}
    if "tab" in there:
        model["sentence_dim"] = found.widths[WINDOW] // (2 * context.size + 1)
    model["buckets"] = buckets(found, {f"{b}_len": INPUTS[b] for b in there if b != "tab"}) if there != ("tab",) else []
    text = own.encoder("text_encoder", INPUTS["text"]) if "text" in there else {}
    return {"model": model | ({"text": text} if text else {})}
