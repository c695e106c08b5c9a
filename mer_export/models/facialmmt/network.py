"""FacialMMT: text of the dialogue, audio and faces of the utterance, and the expression model that weighs the faces.

Paper: Zheng et al., "A Facial Expression-Aware Multimodal Multi-task Learning Framework for Emotion Recognition in
Multi-party Conversations", ACL 2023. Public repository: NUSTM/FacialMMT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.bert.config import BertConfig
from mer_export.layers.bert.network import Bert
from mer_export.layers.standardise import Standardise
from mer_export.layers.steps import real_steps
from mer_export.models.facialmmt.config import FacialMmtConfig
from mer_export.models.facialmmt.fusion import (
    Encoder,
    Pooling,
    Real,
    Steps,
    cross_modal,
    distribution,
    select_frames,
    utterance_rows,
)
from mer_export.models.facialmmt.swin import FaceExpression

Lengths = Int[Tensor, " batch"]
Hidden = Float[Tensor, "batch tokens hidden"]
Logits = Float[Tensor, "batch labels"]


Sequence = tuple[Steps, Real]
"""States, and which of them are real."""


@dataclass(frozen=True)
class Fused:
    """What the fusion makes of a batch on its way to the logits; sequences in the order text, audio, vision.

    `states` are those of each modality before they meet, `crossed` what one sees of another (`text_from_audio`).
    """

    states: dict[str, Steps]
    crossed: dict[str, Steps]
    real: Real
    weights: Float[Tensor, "batch time"]
    pooled: Float[Tensor, "batch width"]
    logits: Logits


class MultimodalNetwork(nn.Module):
    """The T+A+V model. Faces come as features with the logits of the expression model.

    Of fewer modalities those that there are meet each other; a single one is pooled as it is.
    """

    def __init__(self, config: FacialMmtConfig):
        super().__init__()
        self.config, self.used = config, config.used
        width, shape = config.width, layer_shape(config)
        self.standardise = standardisers(config)
        inputs = {"audio": config.audio_dim, "vision": config.vision_dim + config.expressions}
        if "text" in self.used:
            self.bert = Bert(config.bert)
            self.text = nn.Linear(config.bert.hidden, width)
        # Audio and vision by turns: fresh weights come from one stream, in this order.
        for m in config.frames:
            self.add_module(m, nn.Linear(inputs[m], width))
        for m in config.frames:
            layers = config.audio_layers if m == "audio" else config.vision_layers
            self.add_module(f"{m}_encoder", Encoder(shape, config.positions(m), layers))
        lengths = {"text": config.utterance_len, "audio": config.audio_len, "vision": config.vision_len}
        before = sum(lengths[m] for m in self.used if m != "vision")
        if {"text", "audio"} <= set(self.used):
            self.text_audio = cross_modal(
                width,
                config.cross_heads,
                config.cross_layers,
                config.cross_attention_dropout,
                max(lengths["text"], lengths["audio"]),
            )
        if before and "vision" in self.used:
            self.both_vision = cross_modal(
                width,
                config.cross_vision_heads,
                config.cross_vision_layers,
                config.cross_vision_attention_dropout,
                max(before, lengths["vision"]),
            )
        self.pool = Pooling(width)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, len(config.labels))

    def forward(self, **inputs: Tensor) -> Logits:
        """Logits of the utterances. What stands behind a length is never read."""
        text = self.bert(inputs["input_ids"], None, inputs["text_lengths"]) if "text" in self.used else None
        return self.fuse(text, inputs)

    def fuse(self, text_hidden: Hidden | None, inputs: Mapping[str, Tensor]) -> Logits:
        """As `forward`, from the last hidden states of the dialogue's tokens."""
        return self.fuse_states(text_hidden, inputs, self.frames(inputs))

    def fuse_states(
        self, text_hidden: Hidden | None, inputs: Mapping[str, Tensor], frames: Mapping[str, Sequence]
    ) -> Logits:
        """As `fuse`, from the states of the frames; of the inputs it reads where the utterance stands in the text."""
        if text_hidden is None:
            return self.cross(frames).logits
        text = self.utterance_text(text_hidden, inputs["text_lengths"], inputs["text_span"])
        return self.cross({"text": text, **frames}).logits

    def frames(self, inputs: Mapping[str, Tensor]) -> dict[str, Sequence]:
        """States of audio and of selected faces, which are the same whatever is said around the utterance."""
        found: dict[str, Sequence] = {}
        if "audio" in self.used:
            found["audio"] = self.at_length("audio", inputs["audio"], inputs["audio_lengths"])
        if "vision" in self.used:
            found["vision"] = self._selected_faces(inputs)
        return {m: (self._states(m, x, real), real) for m, (x, real) in found.items()}

    def _selected_faces(self, inputs: Mapping[str, Tensor]) -> Sequence:
        """Frames with a clear expression, and its distribution beside them."""
        lengths, logits = inputs["vision_lengths"], inputs["expression_logits"]
        vision, real = self.at_length("vision", inputs["vision"], lengths)
        faces = real_steps(lengths, logits.shape[1])
        likely = distribution(logits, inputs["gumbel_noise"], self.config.temperature)
        likely = self._pad(torch.where(faces[..., None], likely, 0.0), self.config.vision_len)
        return select_frames(vision, likely, real, self.config.threshold)

    def stages(self) -> dict[str, nn.Module]:
        """The modules of the stages by name; they share this network's parameters."""
        frames: dict[str, nn.Module] = {"frames": FramesStage(self)} if self.config.frames else {}
        return {"text": TextStage(self), **frames, "fusion": FusionStage(self)}

    def at_length(self, modality: str, x: Steps, lengths: Lengths) -> Sequence:
        """Frames standardised and padded with zeros to the length that is part of the model, and which are real."""
        given = real_steps(lengths, x.shape[1])
        if modality in self.standardise:
            x = self.standardise[modality](x)
        fixed = getattr(self.config, f"{modality}_len")
        return self._pad(torch.where(given[..., None], x, 0.0), fixed), real_steps(lengths, fixed)

    def utterance_text(self, hidden: Hidden, lengths: Lengths, span: Int[Tensor, "batch 2"]) -> Sequence:
        """States of the utterance's own tokens, and which are real."""
        rows, real = utterance_rows(hidden, lengths, span, self.config.utterance_len)
        # Rows without a token are exact zeros, which the cross-modal encoder gives no position.
        return self.text(rows) * real[..., None].to(rows.dtype), real

    def combine(self, given: Mapping[str, Sequence]) -> Fused:
        """The transformers, from the utterance's text, frames of audio, and selected faces with their distributions."""
        return self.cross({m: (self._states(m, *given[m]), given[m][1]) for m in self.used})

    def _states(self, modality: str, x: Steps, real: Real) -> Steps:
        encoder = getattr(self, f"{modality}_encoder", None)
        return x if encoder is None else encoder(getattr(self, modality)(x), real)

    def cross(self, given: Mapping[str, Sequence]) -> Fused:
        """What the modalities make of each other, from the states of each."""
        states, crossed = {m: given[m][0] for m in self.used}, {}
        heard = [states[m] for m in self.used if m != "vision"]
        if len(heard) == 2:
            text, audio = heard
            crossed["text_from_audio"], crossed["audio_from_text"] = (
                self.text_audio(text, audio),
                self.text_audio(audio, text),
            )
            heard = [torch.cat([crossed["text_from_audio"], crossed["audio_from_text"]], dim=1)]
        if heard and "vision" in self.used:
            both, seen = heard[0], states["vision"]
            crossed["vision_from_both"], crossed["both_from_vision"] = (
                self.both_vision(seen, both),
                self.both_vision(both, seen),
            )
            fused = [crossed["both_from_vision"], crossed["vision_from_both"]]
        else:
            fused = heard or [states["vision"]]
        real = torch.cat([given[m][1] for m in self.used], dim=1)
        pooled, weights = self.pool(torch.cat(fused, dim=1), real)
        return Fused(states, crossed, real, weights, pooled, self.classifier(self.dropout(pooled)))

    def _pad(self, x: Steps, length: int) -> Steps:
        return functional.pad(x, (0, 0, 0, length - x.shape[1]))


class TextStage(nn.Module):
    """Tokens of dialogues in, hidden states out."""

    def __init__(self, model: MultimodalNetwork):
        super().__init__()
        self.bert = model.bert

    def forward(self, input_ids: Int[Tensor, "batch tokens"], text_lengths: Lengths) -> Hidden:
        return self.bert(input_ids, None, text_lengths)


class FramesStage(nn.Module):
    """Frames of utterances in, for each modality its states and which of them are real (1.0) out."""

    def __init__(self, model: MultimodalNetwork):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.model.frames(inputs).values()
        return tuple(tensor for x, real in found for tensor in (x, real.to(x.dtype)))


class FusionStage(nn.Module):
    """States of the dialogue's tokens and of the utterance's frames in, logits out."""

    def __init__(self, model: MultimodalNetwork):
        super().__init__()
        self.model = model

    def forward(self, text_hidden: Hidden, **inputs: Tensor) -> Logits:
        frames = {m: (inputs[f"{m}_states"], inputs[f"{m}_real"] > 0.5) for m in self.model.config.frames}
        return self.model.fuse_states(text_hidden, inputs, frames)


class EndToEnd(MultimodalNetwork):
    """The T+A+V model with the expression model in front."""

    def __init__(self, config: FacialMmtConfig):
        super().__init__(config)
        self.face = face(config)

    def forward(self, **inputs: Tensor) -> Logits:
        """As `MultimodalNetwork`, from face crops."""
        logits = self.expressions(inputs["images"], inputs["vision_lengths"], inputs.get("face_rows"))
        return super().forward(**inputs, expression_logits=logits)

    def stages(self) -> dict[str, nn.Module]:
        """As those of `MultimodalNetwork`, and faces one by one."""
        return {"face": self.face} | super().stages()

    def expressions(
        self,
        images: Float[Tensor, "batch frames channels size size"],
        lengths: Lengths,
        rows: Int[Tensor, " faces"] | None = None,
    ) -> Float[Tensor, "batch frames expressions"]:
        """Logits of the expression model; those behind a length mean nothing.

        In training `rows` are the real frames, counted over the batch; without them the lengths are asked, which makes
        the host wait for a GPU.
        """
        frames = images.shape[1]
        flat = images.flatten(0, 1)
        if not self.training:
            return self.face(flat).unflatten(0, (-1, frames))
        # Utterances train the fusion alone, but they move batch norm's statistics, which must not see padding.
        if rows is None:
            rows = real_steps(lengths, frames).flatten().nonzero().flatten()
        logits = images.new_zeros(len(flat), self.config.expressions)
        if len(rows):
            with torch.no_grad():
                logits.index_copy_(0, rows, self.face(flat.index_select(0, rows)).to(logits.dtype))
        return logits.unflatten(0, (-1, frames))


class VisionOnly(nn.Module):
    """The unimodal model over face features."""

    def __init__(self, config: FacialMmtConfig):
        super().__init__()
        self.config = config
        self.standardise = standardisers(config)
        self.vision = nn.Linear(config.vision_dim, config.width)
        self.vision_encoder = Encoder(layer_shape(config), config.positions("vision"), config.vision_layers)
        self.pool = Pooling(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.width, len(config.labels))

    def forward(self, vision: Steps, vision_lengths: Lengths) -> Logits:
        """Logits of the utterances; without any face those of the classifier's biases."""
        return self.combine(vision, vision_lengths)[-1]

    def combine(self, vision: Steps, lengths: Lengths) -> tuple[Steps, Tensor, Tensor, Logits]:
        """States of the frames, the pooled vector, its weights and the logits."""
        real = real_steps(lengths, vision.shape[1])
        if "vision" in self.standardise:
            vision = self.standardise["vision"](vision)
        states = self.vision_encoder(self.vision(torch.where(real[..., None], vision, 0.0)), real)
        pooled, weights = self.pool(states, real)
        return states, pooled, weights, self.classifier(self.dropout(pooled))


def layer_shape(config: FacialMmtConfig) -> BertConfig:
    """Layers of the audio and vision encoders are built like those of BERT."""
    return BertConfig(
        hidden=config.width,
        heads=config.heads,
        feed_forward=config.feed_forward,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )


def standardisers(config: FacialMmtConfig) -> nn.ModuleDict:
    """The standardisation of each input that has one."""
    return nn.ModuleDict({m: Standardise(getattr(config, f"{m}_dim")) for m in config.standardise})


def face(config: FacialMmtConfig) -> FaceExpression:
    """The expression model."""
    assert config.swin is not None
    return FaceExpression(config.swin, config.expressions)


NETWORKS = {"fusion": MultimodalNetwork, "end_to_end": EndToEnd, "vision": VisionOnly, "face": face}


def network(config: FacialMmtConfig) -> nn.Module:
    """The network of a configuration."""
    return NETWORKS[config.variant](config)
