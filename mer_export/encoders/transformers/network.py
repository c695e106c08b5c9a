"""A network of the `transformers` package as an encoder: fixed lengths, padding that changes nothing, states pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.encoders.config import EncoderConfig
from mer_export.encoders.inputs import SoundInput
from mer_export.encoders.transformers.config import TransformersConfig
from mer_export.encoders.transformers.kinds import KINDS
from mer_export.errors import NotAvailableError, UnsupportedError
from mer_export.install import not_installed
from mer_export.layers.masked_norm import masked_group_norm


class TransformersEncoder(nn.Module):
    """The layers up to the last one that is read, and the pooling of their states."""

    def __init__(self, config: TransformersConfig):
        super().__init__()
        self.config = config
        self.network = _network(config)
        self._states: dict[int, Tensor] = {}
        self._told: dict[str, Tensor] = {}
        self._watch()
        if config.record.form == "waveform":
            self._mask()

    def _mask(self) -> None:
        """Padding of a waveform changes nothing: neither a norm over time nor, by its mask, what comes after it."""
        self.network._get_feature_vector_attention_mask = Tell(self._told, "real")
        first = self.network.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            conv = first.conv
            first.layer_norm = RealGroupNorm(first.layer_norm, self._told, conv.kernel_size[0], conv.stride[0])

    def _watch(self) -> None:
        """Keeps what goes into the layers whose input is read, and drops those that nothing reads."""
        config, layers = self.config, _layers(self.network, self.config.depth)
        for number, layer in enumerate(layers):
            if number in config.layers:
                layer.register_forward_pre_hook(Keep(self._states, number), with_kwargs=True)
        kept = layers[: config.last + (config.last < config.depth)]
        owner = next(m for m in self.network.modules() for child in m.children() if child is layers)
        name = next(n for n, child in owner.named_children() if child is layers)
        setattr(owner, name, kept)
        for section in (self.network.config, getattr(owner, "config", None)):
            for field in ("encoder_layers", "num_hidden_layers", "n_layers"):
                if section is not None and getattr(section, field, None) == config.depth:
                    setattr(section, field, len(kept))

    def forward(self, **inputs: Tensor) -> Tensor:
        """The contract's inputs by name; gives vectors (batch, width) or states (batch, steps, width) float32."""
        last, mask = getattr(self, f"_of_{self.config.record.form}")(**inputs)
        states = [last if n == self.config.depth else self._states[n] for n in self.config.layers]
        # Nothing that a trace has seen may stay behind.
        self._states.clear()
        self._told.clear()
        return pooled(torch.cat(states, dim=-1), mask, self.config)

    def _of_text(
        self, input_ids: Int[Tensor, "batch tokens"], tokens_len: Int[Tensor, " batch"]
    ) -> tuple[Tensor, Tensor]:
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < tokens_len[:, None]
        return self.network(input_ids=input_ids, attention_mask=mask.long())[0], mask

    def _of_waveform(
        self, sound: Float[Tensor, "batch frames hop"], samples: Int[Tensor, "batch one"]
    ) -> tuple[Tensor, Tensor]:
        recipe = self.config.input
        assert isinstance(recipe, SoundInput)
        frames = sound.shape[1]
        real = torch.arange(frames, device=sound.device) * recipe.hop + recipe.field <= samples
        self._told.update(samples=samples, real=real)
        audio = functional.pad(sound.flatten(1), (0, recipe.field - recipe.hop))
        return self.network(audio, attention_mask=torch.ones_like(audio, dtype=torch.long))[0], real

    def _of_log_mel(
        self, sound: Float[Tensor, "batch frames mels"], samples: Int[Tensor, "batch one"]
    ) -> tuple[Tensor, Tensor]:
        recipe = self.config.input
        assert isinstance(recipe, SoundInput)
        mel = sound.reshape(sound.shape[0], -1, recipe.mels).transpose(1, 2)
        real = torch.arange(sound.shape[1], device=sound.device) * recipe.hop < samples
        return self.network(mel)[0], real

    def _of_picture(self, picture: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, Tensor]:
        states = self.network(pixel_values=picture)[0]
        return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)


@dataclass
class Keep:
    """A hook that notes what goes into a layer. An object, so that a copy of the network has hooks of its own."""

    states: dict[int, Tensor]
    number: int

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.states[self.number] = inputs[0] if inputs else named["hidden_states"]


@dataclass
class Tell:
    """Says what was told under a name, whatever it is asked."""

    told: dict[str, Tensor]
    name: str

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return self.told[self.name]


class RealGroupNorm(nn.Module):
    """A group norm of one channel per group over the real part of a waveform alone.

    wav2vec 2.0 (Baevski et al., NeurIPS 2020) of "base" size normalises each channel over time: over padding too, if it
    is let. `told` holds the real samples (batch, 1) of the call.
    """

    def __init__(self, norm: nn.GroupNorm, told: dict[str, Tensor], field: int, hop: int):
        super().__init__()
        self.weight, self.bias, self.eps, self.groups = norm.weight, norm.bias, norm.eps, norm.num_groups
        self.field, self.hop = field, hop
        self._told = told

    def forward(self, states: Float[Tensor, "batch channels steps"]) -> Float[Tensor, "batch channels steps"]:
        steps = (self._told["samples"] - self.field) // self.hop + 1
        return masked_group_norm(states, steps, self.groups, self.weight, self.bias, self.eps)


def package_class(name: str) -> Any:
    """The package's class of a kind; raises NotAvailableError without the package."""
    try:
        import transformers
    except ImportError:
        raise NotAvailableError(not_installed("transformers, which builds this encoder,", "encoders")) from None
    kind: Any = getattr(transformers, KINDS[name].network, None)
    if kind is None:
        module = getattr(transformers.models, name.replace("-", "_"))
        kind = getattr(module, f"modeling_{name}")
        kind = getattr(kind, KINDS[name].network)
    return kind


def _network(config: TransformersConfig) -> Any:
    kind = package_class(config.kind)
    values = {n: v for n, v in config.network.items() if n != "model_type"}
    described = kind.config_class(**values)
    described._attn_implementation = "eager"
    if config.record.form == "log_mel":
        described.max_source_positions = config.input.lengths[-1]["frames"]
    try:
        network = kind(described, add_pooling_layer=False)
    except TypeError:
        network = kind(described)
    return network


def _layers(network: nn.Module, depth: int) -> nn.ModuleList:
    """The stack that the config counts."""
    found = [m for n, m in network.named_modules() if isinstance(m, nn.ModuleList) and n.endswith(("layer", "layers"))]
    fitting = [m for m in found if len(m) == depth and not isinstance(m[0], nn.Conv1d)]
    if not fitting:
        raise UnsupportedError(f"no stack of {depth} layers in {type(network).__name__}: this kind is not known here")
    return fitting[0]


def pooled(states: Tensor, mask: Tensor, config: EncoderConfig) -> Tensor:
    """Features of states (batch, steps, numbers), of which `mask` (batch, steps) says what is real.

    The numbers are those of all vectors of an item, each of which has a length of its own.
    """
    if config.pooling == "none":
        return states * mask[..., None].to(states.dtype)
    if config.pooling == "first":
        vector = states[:, 0]
    elif config.pooling == "last":
        place = (mask.long().sum(dim=1) - 1).clamp(min=0)
        vector = states.gather(1, place[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]
    else:
        real = mask[..., None].to(states.dtype)
        vector = (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
    if not config.unit:
        return vector
    return functional.normalize(vector.unflatten(-1, (config.vectors, config.width)), dim=-1).flatten(-2)
