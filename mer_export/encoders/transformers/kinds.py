"""The kinds of networks that are taken from a `transformers` folder, by `model_type`. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["text", "waveform", "log_mel", "picture"]


@dataclass(frozen=True)
class Kind:
    """What one is: what it reads, its class in the package, and where its part of a file of weights begins.

    `prefixes` are tried in order after the names as they are. `section` is the part of config.json that describes it,
    where that describes more. `shorter` is whether one number of a size is the shorter side, as the package has it for
    these; of the others it is both.
    """

    form: Form
    network: str
    prefixes: tuple[str, ...]
    section: str = ""
    shorter: bool = False


KINDS: dict[str, Kind] = {
    "bert": Kind("text", "BertModel", ("bert.",)),
    "roberta": Kind("text", "RobertaModel", ("roberta.",)),
    "xlm-roberta": Kind("text", "XLMRobertaModel", ("roberta.",)),
    "camembert": Kind("text", "CamembertModel", ("roberta.",)),
    "electra": Kind("text", "ElectraModel", ("electra.",)),
    "distilbert": Kind("text", "DistilBertModel", ("distilbert.",)),
    "mpnet": Kind("text", "MPNetModel", ("mpnet.",)),
    "deberta": Kind("text", "DebertaModel", ("deberta.",)),
    "deberta-v2": Kind("text", "DebertaV2Model", ("deberta.",)),
    "modernbert": Kind("text", "ModernBertModel", ("model.",)),
    "wav2vec2": Kind("waveform", "Wav2Vec2Model", ("wav2vec2.",)),
    "hubert": Kind("waveform", "HubertModel", ("hubert.",)),
    "wavlm": Kind("waveform", "WavLMModel", ("wavlm.",)),
    "whisper": Kind("log_mel", "WhisperEncoder", ("encoder.", "model.encoder.")),
    "vit": Kind("picture", "ViTModel", ("vit.",)),
    "dinov2": Kind("picture", "Dinov2Model", ("dinov2.",), shorter=True),
    "clip_vision_model": Kind("picture", "CLIPVisionModel", ("vision_model.",), shorter=True),
    "clip": Kind("picture", "CLIPVisionModel", ("vision_model.",), section="vision_config", shorter=True),
    "siglip_vision_model": Kind("picture", "SiglipVisionModel", ("vision_model.",)),
    "siglip": Kind("picture", "SiglipVisionModel", ("vision_model.",), section="vision_config"),
}
"""DeBERTa's first and second version have one layout each; "clip" and "siglip" give their vision tower."""
