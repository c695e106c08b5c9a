"""What own data make of the recipe of cmerc. Needs no torch."""

from __future__ import annotations

from mer_export.data.dialogues import MODALITIES
from mer_export.errors import UsageError
from train.own_data import Own, Sections


def cmerc(own: Own) -> Sections:
    """Labels, speakers, widths and buckets; dialogues are counted by any modality."""
    found = own.facts
    labels = own.labels_of("cmerc", "classification")
    used = [m for m in MODALITIES if m in found.widths]
    if "speaker" not in found.shapes:
        raise UsageError("cmerc reads who speaks, the data do not say: name the column in data.speaker, or one for all")
    half, longest = found.steps("speaker")
    model = {f"{m}_dim": found.widths[m] for m in used} | {"labels": list(labels), "speakers": found.speakers}
    model |= {"modalities": used, "standardise": used, "buckets": sorted({half, longest})}
    if "text" in used:
        model["text_vectors"] = max(shape[0] for shape in found.shapes["text"])
    return {"model": model, "data": {"speakers": found.speakers}}
