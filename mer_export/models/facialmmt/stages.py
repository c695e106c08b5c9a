"""FacialMMT in stages: faces one by one, the text once per dialogue, the frames once per utterance, and the fusion.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from mer_export.contract import BATCH, TensorSpec
from mer_export.models.facialmmt.config import INPUTS, FacialMmtConfig, expression_spec, text_inputs
from mer_export.stages import Stage

STAGED = ("fusion", "end_to_end")
FRAMES = "frames"


def stages(config: FacialMmtConfig, names: Sequence[str] = ()) -> tuple[Stage, ...]:
    """The stages of a variant in order; none of those that have one network, or no text to share.

    `names` are those that an export has: earlier ones have the frames in the fusion.
    """
    if config.variant not in STAGED or "text" not in config.used:
        return ()
    hidden = TensorSpec(name="text_hidden", dtype="float32", dims=(BATCH, "text_len", config.bert.hidden))
    text = Stage("text", text_inputs(config), (hidden,), repeats=True)
    words = [s for s in INPUTS["fusion"](config.model_copy(update={"variant": "fusion"})) if s.name != "input_ids"]
    own = tuple(s for s in words if not s.name.startswith("text_"))
    logits = TensorSpec(name="logits", dtype="float32", dims=(BATCH, len(config.labels)))
    if own and (not names or FRAMES in names):
        states = tuple(spec for m in config.frames for spec in _states(m, config))
        spans = tuple(s for s in words if s.name.startswith("text_"))
        after: tuple[Stage, ...] = (
            Stage(FRAMES, own, states, repeats=True),
            Stage("fusion", (hidden, *spans, *states), (logits,)),
        )
    else:
        after = (Stage("fusion", (hidden, *words), (logits,)),)
    if config.variant == "fusion":
        return text, *after
    whole = expression_spec(config)
    expressions = whole.model_copy(update={"dims": (BATCH, *whole.dims[2:])})
    return Stage("face", INPUTS["face"](config), (expressions,), per="vision_len", repeats=True), text, *after


def _states(modality: str, config: FacialMmtConfig) -> tuple[TensorSpec, TensorSpec]:
    """What the frames become, at the length that is part of the model, and which of it is real."""
    steps = getattr(config, f"{modality}_len")
    return (
        TensorSpec(name=f"{modality}_states", dtype="float32", dims=(BATCH, steps, config.width)),
        TensorSpec(name=f"{modality}_real", dtype="float32", dims=(BATCH, steps)),
    )
