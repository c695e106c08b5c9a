"""A causal CMERC utterance by utterance: the whole dialogue with what there is to keep of it, or its next utterance.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from mer_export.contract import BATCH, TensorSpec
from mer_export.models.cmerc.config import LENGTH, CmercConfig, contract
from mer_export.stages import PAST, Stage

STATES = "states"


def stages(config: CmercConfig, names: Sequence[str] = ()) -> tuple[Stage, ...]:
    """The stages of a network whose utterances hear the past alone; none of others."""
    if not config.causal:
        return ()
    whole = contract(config)
    width = states_width(config)
    (log_prob,) = whole.outputs
    states = TensorSpec(name=STATES, dtype="float32", dims=(BATCH, LENGTH, width))
    past = states.model_copy(update={"name": f"{PAST}{STATES}"})
    (count,) = (s for s in whole.inputs if s.counts)
    said = tuple(_one(s) for s in whole.features)
    return (
        Stage("whole", whole.inputs, (log_prob, states)),
        Stage("step", (*said, past, count), (_one(log_prob), _one(states)), grows=LENGTH),
    )


def recurrent(config: CmercConfig) -> tuple[str, ...]:
    """The modalities that a base model reads."""
    return tuple(m for m in config.used if m == "text" or config.encode_audio_vision)


def states_each(config: CmercConfig) -> int:
    """How many states an utterance leaves behind in two recurrent layers: outputs, and the cells of an LSTM."""
    return {"gru": 2, "lstm": 4}[config.base_model]


def levels(config: CmercConfig) -> int:
    """Of how many layers a step reads the nodes of earlier utterances; the first ones of both branches are the same."""
    return config.hypergraph_layers + config.frequency_layers - 1


def states_width(config: CmercConfig) -> int:
    """What an utterance leaves behind: states of the recurrent layers of each modality, nodes of each layer."""
    states = states_each(config) * len(recurrent(config)) * config.width
    return states + levels(config) * len(config.used) * config.hidden


def _one(spec: TensorSpec) -> TensorSpec:
    """The same of one utterance."""
    return spec.model_copy(update={"dims": tuple(1 if d == LENGTH else d for d in spec.dims)})
