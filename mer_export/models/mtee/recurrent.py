"""The recurrent networks of mtee: emotion embeddings (eea) and the early, late and combined fusion baselines.

Sections 3.1 and 3.2. All of them read nothing but the last real step of the top layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mer_export.layers.recurrent import LastStepRNN
from mer_export.models.mtee.base import Features, Lengths, Logits, Network
from mer_export.models.mtee.config import MODALITIES, MteeConfig

Emotions = Float[Tensor, "emotions word"]
HEAD_DROPOUT = 0.1
"""Of the combined baseline, whatever the configured rate."""


def encoders(config: MteeConfig, modalities: Iterable[str] = MODALITIES) -> nn.ModuleDict:
    """One recurrent encoder per modality."""
    return nn.ModuleDict({m: encoder(config, config.dims[m], config.hidden[m]) for m in modalities})


def encoder(config: MteeConfig, width: int, hidden: int) -> LastStepRNN:
    return LastStepRNN(config.cell, width, hidden, config.layers, config.bidirectional, config.dropout)


class Eea(Network):
    """Emotion embeddings: a label scores by the dot product of its word vector with each modality's sequence vector.

    Two affine maps carry word vectors to audio and visual space. Here the sequence vectors are carried back instead
    (h . (A e + b) = (h A) . e + h . b), so that the whole network ends in one product with the emotion matrix.
    """

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.used = config.used
        word = config.hidden_sizes[0]
        self.encoders = encoders(config, self.used)
        self.affine = nn.ModuleDict({m: nn.Linear(word, config.hidden[m]) for m in self.used if m != "text"})
        # One modality is not weighted in the original; several are not normalised.
        weights = torch.full((len(self.used),), 1.0 / len(self.used))
        self.modality_weight = nn.Parameter(weights) if len(self.used) > 1 else None

    def score(self, inputs: Mapping[str, Features], lengths: Mapping[str, Lengths], emotions: Emotions) -> Logits:
        """Weighted sum of the modalities' scores; a modality without steps adds nothing."""
        queries = self.queries(inputs, lengths)
        query, offset = queries[self.used[0]]
        if self.modality_weight is not None:
            weight = dict(zip(self.used, self.modality_weight.unbind(0), strict=True))
            query = torch.stack([weight[m] * q for m, (q, _) in queries.items()]).sum(0)
            offset = torch.stack([weight[m] * o for m, (_, o) in queries.items()]).sum(0)
        return query @ emotions.transpose(0, 1) + offset

    def queries(
        self, inputs: Mapping[str, Features], lengths: Mapping[str, Lengths]
    ) -> dict[str, tuple[Float[Tensor, "batch word"], Float[Tensor, "batch 1"]]]:
        """By modality: what is multiplied with the word vectors, and what is added for every emotion alike."""
        found = {}
        for modality, x in self.standardised(inputs).items():
            # Both directions are added, not concatenated as in the baselines.
            state = self.encoders[modality](x, lengths[modality]).sum(1)
            if modality == "text":
                found[modality] = state, torch.zeros_like(state[:, :1])
            else:
                affine = cast(nn.Linear, self.affine[modality])
                found[modality] = state @ affine.weight, state @ affine.bias[:, None]
        return found


class EeaText(Eea):
    def forward(self, text: Features, text_lengths: Lengths, emotions: Emotions) -> Logits:
        return self.score({"text": text}, {"text": text_lengths}, emotions)


class EeaAudio(Eea):
    def forward(self, audio: Features, audio_lengths: Lengths, emotions: Emotions) -> Logits:
        return self.score({"audio": audio}, {"audio": audio_lengths}, emotions)


class EeaVision(Eea):
    def forward(self, vision: Features, vision_lengths: Lengths, emotions: Emotions) -> Logits:
        return self.score({"vision": vision}, {"vision": vision_lengths}, emotions)


class EeaTextAudio(Eea):
    def forward(
        self, text: Features, audio: Features, text_lengths: Lengths, audio_lengths: Lengths, emotions: Emotions
    ) -> Logits:
        return self.score({"text": text, "audio": audio}, {"text": text_lengths, "audio": audio_lengths}, emotions)


class EeaTextVision(Eea):
    def forward(
        self, text: Features, vision: Features, text_lengths: Lengths, vision_lengths: Lengths, emotions: Emotions
    ) -> Logits:
        return self.score({"text": text, "vision": vision}, {"text": text_lengths, "vision": vision_lengths}, emotions)


class EeaAudioVision(Eea):
    def forward(
        self, audio: Features, vision: Features, audio_lengths: Lengths, vision_lengths: Lengths, emotions: Emotions
    ) -> Logits:
        return self.score(
            {"audio": audio, "vision": vision}, {"audio": audio_lengths, "vision": vision_lengths}, emotions
        )


class EeaAll(Eea):
    def forward(
        self,
        text: Features,
        audio: Features,
        vision: Features,
        text_lengths: Lengths,
        audio_lengths: Lengths,
        vision_lengths: Lengths,
        emotions: Emotions,
    ) -> Logits:
        lengths = {"text": text_lengths, "audio": audio_lengths, "vision": vision_lengths}
        return self.score({"text": text, "audio": audio, "vision": vision}, lengths, emotions)


EEA_BY_MODALITIES: dict[tuple[str, ...], type[Eea]] = {
    ("text",): EeaText,
    ("audio",): EeaAudio,
    ("vision",): EeaVision,
    ("text", "audio"): EeaTextAudio,
    ("text", "vision"): EeaTextVision,
    ("audio", "vision"): EeaAudioVision,
    MODALITIES: EeaAll,
}
"""Exporters bind inputs by the signature of forward, so each set of modalities has its own."""


class EarlyFusion(Network):
    """Features of a step concatenated, one RNN, a linear head."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.encoder = encoder(config, sum(config.dims.values()), config.hidden_size)
        self.head = nn.Linear(config.directions * config.hidden_size, len(config.labels))

    def forward(self, text: Features, audio: Features, vision: Features, lengths: Lengths) -> Logits:
        inputs = self.standardised({"text": text, "audio": audio, "vision": vision})
        return self.head(self.encoder(torch.cat([inputs[m] for m in MODALITIES], dim=-1), lengths).flatten(1))


class LateFusion(Network):
    """One RNN per modality, last states concatenated, a linear head."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.encoders = encoders(config)
        self.head = nn.Linear(config.directions * sum(config.hidden_sizes), len(config.labels))

    def forward(
        self,
        text: Features,
        audio: Features,
        vision: Features,
        text_lengths: Lengths,
        audio_lengths: Lengths,
        vision_lengths: Lengths,
    ) -> Logits:
        inputs = self.standardised({"text": text, "audio": audio, "vision": vision})
        lengths = {"text": text_lengths, "audio": audio_lengths, "vision": vision_lengths}
        return self.head(torch.cat([self.encoders[m](inputs[m], lengths[m]).flatten(1) for m in MODALITIES], dim=-1))


class BothFusions(Network):
    """The states of late and of early fusion side by side, a head with one hidden layer."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.encoders = encoders(config)
        self.encoder = encoder(config, sum(config.dims.values()), config.hidden_size)
        width = config.directions * (config.hidden_size + sum(config.hidden_sizes))
        self.head = nn.Sequential(
            nn.Linear(width, width // 2), nn.ReLU(), nn.Dropout(HEAD_DROPOUT), nn.Linear(width // 2, len(config.labels))
        )

    def forward(
        self,
        text: Features,
        audio: Features,
        vision: Features,
        text_lengths: Lengths,
        audio_lengths: Lengths,
        vision_lengths: Lengths,
    ) -> Logits:
        inputs = self.standardised({"text": text, "audio": audio, "vision": vision})
        lengths = {"text": text_lengths, "audio": audio_lengths, "vision": vision_lengths}
        states = [self.encoders[m](inputs[m], lengths[m]).flatten(1) for m in MODALITIES]
        # The modalities are aligned: one that is missing has length 0, the fused sequence is as long as the others.
        steps = torch.stack([lengths[m] for m in MODALITIES]).amax(0)
        fused = torch.cat([inputs[m] for m in MODALITIES], dim=-1)
        return self.head(torch.cat([*states, self.encoder(fused, steps).flatten(1)], dim=-1))
