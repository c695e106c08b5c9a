"""FacialMMT in stages: faces one by one, the text once per dialogue, and the fusion. Needs no torch."""

from __future__ import annotations

from mer_export.contract import BATCH, TensorSpec
from mer_export.models.facialmmt.config import INPUTS, FacialMmtConfig, expression_spec, text_inputs
from mer_export.stages import Stage

STAGED = ("fusion", "end_to_end")


def stages(config: FacialMmtConfig) -> tuple[Stage, ...]:
    """The stages of a variant in order; none of those that have one network, or no text to share."""
    if config.variant not in STAGED or "text" not in config.used:
        return ()
    hidden = TensorSpec(name="text_hidden", dtype="float32", dims=(BATCH, "text_len", config.bert.hidden))
    text = Stage("text", text_inputs(config), (hidden,), repeats=True)
    given = [s for s in INPUTS["fusion"](config.model_copy(update={"variant": "fusion"})) if s.name != "input_ids"]
    logits = TensorSpec(name="logits", dtype="float32", dims=(BATCH, len(config.labels)))
    fusion = Stage("fusion", (hidden, *given), (logits,))
    if config.variant == "fusion":
        return text, fusion
    whole = expression_spec(config)
    expressions = whole.model_copy(update={"dims": (BATCH, *whole.dims[2:])})
    return Stage("face", INPUTS["face"](config), (expressions,), per="vision_len"), text, fusion
