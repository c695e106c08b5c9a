"""EMT-DLFR: the inference path, and the restoration heads that only its training uses.

Paper: Sun et al., "Efficient Multimodal Transformer with Dual-Level Feature Restoration for Robust Multimodal
Sentiment Analysis", IEEE Transactions on Affective Computing 2023. Public repository: sunlicai/EMT-DLFR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.bert.network import Bert, tokens
from mer_export.layers.standardise import Standardise
from mer_export.layers.steps import last_step, real_steps
from mer_export.models.emt.config import EmtConfig
from mer_export.models.emt.fusion import EmtFusion

Vector = Float[Tensor, "batch width"]
Steps = Float[Tensor, "batch time width"]
Output = Float[Tensor, "batch outputs"]
GLOBAL = "context"
"""Name of the flattened global tokens beside the modalities' utterance vectors."""


@dataclass(frozen=True)
class Encoded:
    """One view of a batch before the fusion, by modality.

    `features` are what restoration rebuilds: audio and vision as they enter their encoders, text as BERT's local
    states. `utterance` and `local` are encoder states, `projected` the local ones at the fusion's width, `keys` the
    positions that may be attended to, `context` the global tokens, one of each modality.
    """

    features: dict[str, Steps]
    utterance: dict[str, Vector]
    local: dict[str, Steps]
    projected: dict[str, Steps]
    keys: dict[str, Bool[Tensor, "batch time"]]
    context: Float[Tensor, "batch modalities width"]


@dataclass(frozen=True)
class View:
    """What training sees of one view of a batch.

    `target` (detached) and `guess` are projector and predictor outputs of the global context and the utterance vectors.
    """

    encoded: Encoded
    output: Output
    context: Float[Tensor, "batch modalities width"]
    local: dict[str, Steps]
    target: dict[str, Vector]
    guess: dict[str, Vector]


class Emt(nn.Module):
    """One utterance per item in, its sentiment or class out. Text is token ids, or vectors where there is no `bert`."""

    training_only = ("restoration",)
    """Parts that `forward` never calls; exports leave them out."""

    def __init__(self, config: EmtConfig):
        super().__init__()
        self.config = config
        dims, out, width = config.feature_dims, config.utterance_dims, config.width
        self.standardise = nn.ModuleDict({m: Standardise(dims[m]) for m in config.standardise})
        self.bert = Bert(config.bert) if config.bert else None
        hidden = {"text": config.text_hidden, "audio": config.audio_hidden, "vision": config.vision_hidden}
        recurrent = [m for m in config.used if m != "text" or config.bert is None]
        self.encoders = nn.ModuleDict(
            {m: SequenceEncoder(dims[m], hidden[m], out[m], config.encoder_dropout.get(m, 0.0)) for m in recurrent}
        )
        self.projections = nn.ModuleDict(
            {m: nn.Identity() if out[m] == width else nn.Linear(out[m], width, bias=False) for m in config.used}
        )
        self.fusion = EmtFusion(config)
        self.head = Head(sum(out.values()) + len(config.used) * width, config)
        self.restoration = RestorationHeads(config)

    def forward(self, **inputs: Tensor) -> Output:
        """Score (batch, 1), or log-probabilities (batch, classes), of one view; nothing that it does not need."""
        encoded = self.encode(inputs)
        context, _ = self.fusion(encoded.context, encoded.projected, encoded.keys, uniform=False, update_all=False)
        return self.head(encoded.utterance, context)

    def view(self, inputs: Mapping[str, Tensor], uniform: bool = False) -> View:
        """The output of one view and all that the losses need.

        `uniform` is the authors' treatment of a text without tokens: it attends to every position of the padded
        array, so its answer depends on the padding. Otherwise it attends to nothing.
        """
        encoded = self.encode(inputs)
        context, local = self.fusion(encoded.context, encoded.projected, encoded.keys, uniform, update_all=True)
        target, guess = self.restoration.attraction({GLOBAL: context.flatten(1), **encoded.utterance})
        return View(encoded, self.head(encoded.utterance, context), context, local, target, guess)

    def encode(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encoder states of contract inputs. A missing modality is a text without words, or one empty frame."""
        features, utterance, local, keys = {}, {}, {}, {}
        if self.bert is not None:
            ids, segments, lengths = tokens(inputs, self.bert.config)
            states = self.bert(ids, segments, lengths)
            utterance["text"], local["text"] = states[:, 0], states[:, 1:]
            # The closing special token is not a key.
            keys["text"] = real_steps(lengths - 2, ids.shape[1] - 1)
            features["text"] = local["text"]
        for m, encoder in self.encoders.items():
            x, lengths = inputs[m], inputs[f"{m}_lengths"]
            x = torch.where(real_steps(lengths, x.shape[1])[..., None], x, 0.0)
            if m in self.standardise:
                x = self.standardise[m](x)
            lengths = lengths.clamp(min=1)
            utterance[m], local[m] = encoder(x, lengths)
            keys[m], features[m] = real_steps(lengths, x.shape[1]), x
        context = torch.stack([self.projections[m](utterance[m]) for m in self.config.used], dim=1)
        projected = {m: self.projections[m](local[m]) for m in self.config.used}
        return Encoded(features, utterance, local, projected, keys, context)


class SequenceEncoder(nn.Module):
    """An LSTM; its last state is the utterance vector, all states are the local features, through one layer."""

    def __init__(self, inputs: int, hidden: int, out: int, dropout: float):
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, batch_first=True)
        self.linear = nn.Identity() if hidden == out else nn.Linear(hidden, out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Steps, lengths: Int[Tensor, " batch"]) -> tuple[Vector, Steps]:
        states = self.rnn(x)[0]
        last = self.linear(self.dropout(last_step(states, lengths)))
        inside = real_steps(lengths, x.shape[1])[..., None]
        return last, self.linear(torch.where(inside, states, 0.0))


class Head(nn.Module):
    """Two hidden layers on the utterance vectors and the global context."""

    def __init__(self, inputs: int, config: EmtConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        self.hidden1 = nn.Linear(inputs, config.head_width)
        self.hidden2 = nn.Linear(config.head_width, config.head_width)
        self.out = nn.Linear(config.head_width, len(config.labels) or 1)
        self.classes = bool(config.labels)
        self.used = config.used

    def forward(self, utterance: Mapping[str, Vector], context: Float[Tensor, "batch modalities width"]) -> Output:
        x = self.dropout(torch.cat([*(utterance[m] for m in self.used), context.flatten(1)], dim=-1))
        x = self.out(torch.relu(self.hidden2(torch.relu(self.hidden1(x)))))
        return functional.log_softmax(x, dim=-1) if self.classes else x


class RestorationHeads(nn.Module):
    """Dual-level feature restoration: heads of the attraction (high level) and reconstruction (low level) losses."""

    def __init__(self, config: EmtConfig):
        super().__init__()
        widths = {GLOBAL: len(config.used) * config.width, **config.utterance_dims}
        inner = config.restoration.model_dump()
        self.projectors = nn.ModuleDict({n: Projector(w) for n, w in widths.items()})
        self.predictors = nn.ModuleDict({n: Predictor(w, inner[n]) for n, w in widths.items()})
        self.reconstructors = nn.ModuleDict({m: nn.Linear(config.width, w) for m, w in config.feature_dims.items()})

    def attraction(self, vectors: Mapping[str, Vector]) -> tuple[dict[str, Vector], dict[str, Vector]]:
        """Detached projector outputs and predictor outputs, by name."""
        targets = {n: self.projectors[n](v) for n, v in vectors.items()}
        return {n: t.detach() for n, t in targets.items()}, {n: self.predictors[n](t) for n, t in targets.items()}

    def reconstruct(self, local: Mapping[str, Steps]) -> dict[str, Steps]:
        """Complete features guessed from the fused local features of the incomplete view."""
        return {m: self.reconstructors[m](x) for m, x in local.items()}


class Projector(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, x: Vector) -> Vector:
        return self.norm(self.linear(x))


class Predictor(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.linear = nn.Linear(width, inner, bias=False)
        self.norm = nn.BatchNorm1d(inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Vector) -> Vector:
        return self.out(torch.relu(self.norm(self.linear(x))))
