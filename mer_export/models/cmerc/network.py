"""The M3NET network in dense padded form: no edge lists, no scatter, no packed sequences.

Equal to the original at batch size 1 (`single` semantics, the default and what is exported) or to its batched run
(`batch` semantics, for reproducing published training and evaluation), where a dialogue's result depends on the
padding that its batch needs and on its position in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.contract import Semantics
from mer_export.layers.recurrent import BidirectionalRNN, ForwardRNN, StatesOf
from mer_export.layers.standardise import Standardise
from mer_export.layers.steps import last_step, real_steps
from mer_export.layers.transformer import TransformerLayer
from mer_export.models.cmerc.config import CmercConfig
from mer_export.models.cmerc.graph import (
    Before,
    Context,
    Frequency,
    Hypergraph,
    Lengths,
    Mask,
    Nodes,
    context_edges,
    frequency_step,
    hypergraph_step,
)
from mer_export.models.cmerc.stages import levels, recurrent, states_each

States = Float[Tensor, "batch utterances states"]


class Encoded(NamedTuple):
    """A modality before the graph: its states, the nodes that they become, and what its encoder gave."""

    states: Float[Tensor, "batch utterances width"]
    node: Float[Tensor, "batch utterances hidden"]
    layers: list[Float[Tensor, "batch utterances width"]]


class Cmerc(nn.Module):
    """One dialogue per item in, log-probabilities of every utterance out."""

    def __init__(self, config: CmercConfig):
        super().__init__()
        self.config = config
        width, hidden = config.width, config.hidden
        self.used, inner = config.used, config.encode_audio_vision
        self.standardise = nn.ModuleDict({m: Standardise(config.dims[m]) for m in config.standardise})
        self.text_norm = self.text_linear = self.text_encoder = None
        if "text" in self.used:
            self.text_norm = TextNorm(config.norm, config.text_vectors, config.text_dim)
            self.text_linear = nn.Linear(config.text_dim, width) if config.text_linear else nn.Identity()
        self.audio_linear = nn.Linear(config.audio_dim, width) if "audio" in self.used else None
        self.vision_linear = nn.Linear(config.vision_dim, width) if "vision" in self.used else None
        if "text" in self.used:
            self.text_encoder = Encoder(config)
        self.audio_encoder = Encoder(config) if inner and "audio" in self.used else None
        self.vision_encoder = Encoder(config) if inner and "vision" in self.used else None
        self.speaker_embedding = nn.Embedding(config.speakers, width) if config.speaker_embedding else None
        self.modal_embedding = nn.Embedding(3, width) if config.modal_embedding else None
        self.node_projection = nn.Linear(width, hidden)
        self.hypergraph = Hypergraph(hidden, config.hypergraph_layers, config.causal)
        self.frequency = Frequency(hidden, config.frequency_layers)
        self.dropout = nn.Dropout(config.dropout)
        block = 2 * hidden + (width if config.residue else 0)
        self.classifier = nn.Linear(len(self.used) * block, len(config.labels))

    def forward(self, **inputs: Any) -> Float[Tensor, "batch utterances classes"]:
        """Log-probabilities in `single` semantics; rows at and past the real length are 0."""
        return self.classify(self.features(**inputs), inputs["lengths"])

    def features(
        self,
        *,
        speaker: Int[Tensor, "batch utterances"],
        lengths: Int[Tensor, " batch"],
        semantics: Semantics = "single",
        context: Context = "full",
        **inputs: Tensor,
    ) -> Float[Tensor, "batch utterances features"]:
        """Graph features before dropout and ReLU, blocks in the order of the modalities; 0 at padding.

        Args:
            speaker: index of the speaker.
            lengths: real utterances.
            semantics: with `batch` the inputs must be padded with zeros to the longest dialogue of the batch.
            context: drops within-modality edges between utterances of the same ("intra") or of different ("inter")
                speakers from the frequency branch (CMERC's degraded views).
            **inputs: `text` (batch, vectors, utterances, width), `audio` and `vision` (batch, utterances, width).
        """
        mask = self.mask(lengths, speaker.shape[1])
        encoded = self.encode({m: inputs[m] for m in self.used}, speaker, lengths, mask, semantics)
        return self.relate(encoded, speaker, lengths, mask, semantics, context)

    def mask(self, lengths: Int[Tensor, " batch"], steps: int) -> Mask:
        """1 at real utterances, 0 at padding."""
        return real_steps(lengths, steps).to(self.node_projection.weight.dtype)

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        speaker: Int[Tensor, "batch utterances"],
        lengths: Int[Tensor, " batch"],
        mask: Mask,
        semantics: Semantics,
        before: Mapping[str, list[Tensor]] | None = None,
    ) -> dict[str, Encoded]:
        """Modalities before the graph, each by itself: one is the same whatever the others are.

        `before` are states (batch, width) of each modality that the recurrent layers of a causal network go on after.
        """
        # M3NET's recurrent layers and LN2 run over the padding of the batch.
        seen = lengths if semantics == "single" else torch.full_like(lengths, mask.shape[1])
        given = dict(inputs)
        if semantics == "single":
            # Nothing that comes after sees padding; but a scale of int8 would, whatever stands there.
            inside = {m: mask[:, None, :, None] if m == "text" else mask[..., None] for m in given}
            given = {m: torch.where(inside[m] > 0, x, 0.0) for m, x in given.items()}
        for modality, standardise in self.standardise.items():
            if modality in given:
                given[modality] = standardise(given[modality])
        layers = self._encoded(given, seen, before or {})
        states = {m: own[-1] for m, own in layers.items()}
        if self.speaker_embedding is not None and self.used[0] in states:
            # The original adds it to the text, which is its first modality.
            states[self.used[0]] = states[self.used[0]] + self.speaker_embedding(speaker)
        if self.modal_embedding is not None:
            # Rows of the embedding are audio, vision, text in M3NET.
            for modality, row in zip(("audio", "vision", "text"), self.modal_embedding.weight.unbind(0), strict=True):
                if modality in states:
                    states[modality] = states[modality] + row
        return {m: Encoded(x, self.node_projection(x), layers[m]) for m, x in states.items()}

    def relate(
        self,
        encoded: Mapping[str, Encoded],
        speaker: Int[Tensor, "batch utterances"],
        lengths: Int[Tensor, " batch"],
        mask: Mask,
        semantics: Semantics = "single",
        context: Context = "full",
    ) -> Float[Tensor, "batch utterances features"]:
        """Graph features of encoded modalities; see `features`."""
        edges = context_edges(mask, speaker, context, self.config.causal)
        projected = self.projected(encoded, mask)
        high, low = self.hypergraph(projected, mask, lengths, semantics), self.frequency(projected, mask, edges)
        return self.merged(encoded, mask, high[-1], low[-1])

    def projected(self, encoded: Mapping[str, Encoded], mask: Mask) -> Nodes:
        """The nodes that the graph begins with."""
        return torch.stack([encoded[m].node for m in self.used], dim=1) * mask[:, None, :, None]

    def merged(self, encoded: Mapping[str, Encoded], mask: Mask, *blocks: Nodes) -> Tensor:
        """Features of what both branches gave, modality by modality."""
        residue = [torch.stack([encoded[m].states for m in self.used], dim=1) * mask[:, None, :, None]]
        merged = torch.cat([*(residue if self.config.residue else ()), *blocks], dim=-1)
        return merged.permute(0, 2, 1, 3).flatten(2)

    def _encoded(
        self, inputs: Mapping[str, Tensor], seen: Int[Tensor, " batch"], before: Mapping[str, list[Tensor]]
    ) -> dict[str, list[Tensor]]:
        """Of the given modalities what their encoders give (batch, utterances, width), the states last."""
        encoded = {}
        if "text" in inputs and self.text_norm and self.text_linear and self.text_encoder:
            text = self.text_linear(self.text_norm(inputs["text"], seen))
            encoded["text"] = self.text_encoder(text, seen, before.get("text"))
        others = (("audio", self.audio_linear, self.audio_encoder), ("vision", self.vision_linear, self.vision_encoder))
        for modality, linear, encoder in others:
            if modality in inputs and linear is not None:
                states = linear(inputs[modality])
                encoded[modality] = [states] if encoder is None else encoder(states, seen, before.get(modality))
        return encoded

    def stages(self) -> dict[str, nn.Module]:
        """The modules of the stages by name; they share this network's parameters."""
        return {"whole": WholeStage(self), "step": StepStage(self)}

    def in_batch(self, **inputs: Any) -> Float[Tensor, "batch utterances classes"]:
        """Log-probabilities in `batch` semantics."""
        return self.classify(self.features(**inputs, semantics="batch"), inputs["lengths"])

    def classify(
        self, features: Float[Tensor, "batch utterances features"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch utterances classes"]:
        """The head: dropout, ReLU, linear, log-softmax; 0 at padding."""
        mask = real_steps(lengths, features.shape[1])
        log_prob = functional.log_softmax(self.classifier(torch.relu(self.dropout(features))), dim=-1)
        return log_prob * mask[..., None].to(log_prob.dtype)


class WholeStage(nn.Module):
    """Of a causal network: dialogues in, log-probabilities and what each utterance leaves behind out.

    That never changes, as no utterance hears what comes after it: the states of the recurrent layers and the nodes that
    each layer of the graph reads.
    """

    def __init__(self, model: Cmerc):
        super().__init__()
        self.model = model
        encoders = {m: cast(Encoder, getattr(model, f"{m}_encoder")) for m in recurrent(model.config)}
        self.left = nn.ModuleDict({m: StatesOf(cast(ForwardRNN, e.layers)) for m, e in encoders.items()})

    def forward(self, speaker: Tensor, lengths: Lengths, **inputs: Tensor) -> tuple[Tensor, States]:
        model = self.model
        mask = model.mask(lengths, speaker.shape[1])
        encoded = model.encode(inputs, speaker, lengths, mask, "single")
        nodes = model.projected(encoded, mask)
        high = model.hypergraph(nodes, mask, lengths, "single")
        low = model.frequency(nodes, mask, context_edges(mask, speaker, "full", causal=True))
        kept = [state for m, left in self.left.items() for state in left(encoded[m].layers)]
        kept += [x.transpose(1, 2).flatten(2) for x in (*high[:-1], *low[1:-1])]
        features = model.merged(encoded, mask, high[-1], low[-1])
        return model.classify(features, lengths), torch.cat(kept, dim=-1) * mask[..., None]


class StepStage(nn.Module):
    """An utterance and what those before it left behind in, its log-probabilities and what it leaves behind out."""

    def __init__(self, model: Cmerc):
        super().__init__()
        self.model = model

    def forward(
        self, speaker: Tensor, past_states: States, lengths: Lengths, **inputs: Tensor
    ) -> tuple[Tensor, States]:
        """`lengths` counts the utterances before."""
        model = self.model
        mask = model.mask(torch.ones_like(lengths), 1)
        heard = real_steps(lengths, past_states.shape[1]).to(mask.dtype)
        before, levels = self._read(past_states * heard[..., None], lengths)
        encoded = model.encode(inputs, speaker, torch.ones_like(lengths), mask, "single", before)
        nodes = model.projected(encoded, mask)[:, :, 0]
        layers = len(model.hypergraph.bias)
        high = hypergraph_step(model.hypergraph, nodes, levels[:layers], heard, lengths)
        low = frequency_step(model.frequency, nodes, [levels[0], *levels[layers:]], heard, lengths)
        kept = [state[:, 0] for m in recurrent(model.config) for state in encoded[m].layers]
        kept += [x.flatten(1) for x in (*high[:-1], *low[1:-1])]
        features = model.merged(encoded, mask, high[-1][:, :, None], low[-1][:, :, None])
        return model.classify(features, torch.ones_like(lengths)), torch.cat(kept, dim=-1)[:, None]

    def _read(self, past: States, lengths: Lengths) -> tuple[dict[str, list[Tensor]], list[Before]]:
        """The last states of the recurrent layers by modality, and the nodes by level."""
        config = self.model.config
        each, modalities = states_each(config), recurrent(config)
        nodes = past[..., -levels(config) * len(config.used) * config.hidden :]
        nodes = nodes.unflatten(2, (levels(config), len(config.used), config.hidden)).permute(2, 0, 3, 1, 4)
        last = last_step(past[..., : each * len(modalities) * config.width], lengths).split(config.width, dim=1)
        return {m: list(last[each * i : each * (i + 1)]) for i, m in enumerate(modalities)}, list(nodes.unbind(0))


class TextNorm(nn.Module):
    """Norm of each text vector, then their mean (M3NET, section 3 'text norm' and 'text merge')."""

    def __init__(self, kind: Literal["BN", "LN", "LN2", "none"], vectors: int, width: int):
        super().__init__()
        self.kind = kind
        norm = {"BN": nn.BatchNorm1d, "LN": nn.LayerNorm}.get(kind)
        self.norms = nn.ModuleList([norm(width) for _ in range(vectors)] if norm else [])

    def forward(
        self, text: Float[Tensor, "batch vectors utterances width"], seen: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch utterances width"]:
        """`seen` is how many steps of each item count for LN2 statistics."""
        if self.kind == "LN2":
            text = self._whole_dialogue(text, seen)
        if not self.norms:
            return text.mean(dim=1)
        vectors = text.unbind(dim=1)
        if self.kind == "BN" and not self.training:
            return self._fixed_statistics(vectors)
        # Statistics of BN run over every position of the batch, zero padding included, as in M3NET.
        merged = [n(v.flatten(0, 1)).reshape(v.shape) for n, v in zip(self.norms, vectors, strict=True)]
        return torch.stack(merged).mean(dim=0) if len(merged) > 1 else merged[0]

    def _fixed_statistics(self, vectors: tuple[Tensor, ...]) -> Tensor:
        """Batch norm with its running statistics, and the mean: one scale per vector and one shift in all."""
        merged = torch.zeros((), device=vectors[0].device)
        shift = torch.zeros((), device=vectors[0].device)
        for module, vector in zip(self.norms, vectors, strict=True):
            norm = cast(nn.BatchNorm1d, module)
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            scale = norm.weight * torch.rsqrt(variance + norm.eps) / len(vectors)
            shift = shift + norm.bias / len(vectors) - mean * scale
            merged = merged + vector * scale
        return merged + shift

    def _whole_dialogue(self, text: Tensor, seen: Tensor) -> Tensor:
        """Layer norm without affine jointly over (utterances, width) of each dialogue and vector."""
        inside = real_steps(seen, text.shape[2]).to(text.dtype)[:, None, :, None]
        count = (seen.clamp(min=1) * text.shape[3]).to(text.dtype)[:, None, None, None]
        mean = (text * inside).sum((2, 3), keepdim=True) / count
        centred = (text - mean) * inside
        variance = centred.square().sum((2, 3), keepdim=True) / count
        return centred * torch.rsqrt(variance + 1e-5)


class Encoder(nn.Module):
    """The base model over time: 2-layer GRU or LSTM, bidirectional unless causal, or one transformer layer."""

    def __init__(self, config: CmercConfig):
        super().__init__()
        width = config.width
        self.layers: BidirectionalRNN | ForwardRNN | TransformerLayer
        if config.base_model == "transformer":
            self.layers = TransformerLayer(width, heads=4)
        elif config.causal:
            self.layers = ForwardRNN(config.base_model, width, width, layers=2, dropout=config.dropout)
        else:
            self.layers = BidirectionalRNN(config.base_model, width, width // 2, layers=2, dropout=config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch utterances width"],
        seen: Int[Tensor, " batch"],
        before: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """The states, last; if causal after what each layer reads, or with states `before` after those that follow."""
        if isinstance(self.layers, ForwardRNN):
            return self.layers.go_on(x, before) if before else self.layers(x)
        if isinstance(self.layers, TransformerLayer):
            return [self.layers(x, real_steps(seen, x.shape[1]))]
        return [self.layers(x, seen)]
