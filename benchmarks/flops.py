"""Work of FacialMMT's networks, counted by hand: multiply-adds as 2 operations each, norms and activations left out."""

from __future__ import annotations

from typing import Any

from mer_export.contract import Lengths


def facialmmt_gflop(config: Any, batch: int, lengths: Lengths) -> float:
    """One padded forward pass of any variant, in 1e9."""
    return 2e-9 * batch * COUNTS[config.variant](config, lengths)


def _fusion(config: Any, lengths: Lengths) -> float:
    bert, width, inner = config.bert, config.width, config.feed_forward
    text, audio, vision = config.utterance_len, config.audio_len, config.vision_len
    both = text + audio
    work = bert.layers * _layer(lengths["text_len"], bert.hidden, bert.feed_forward)
    work += text * bert.hidden * width + audio * config.audio_dim * width
    work += vision * (config.vision_dim + config.expressions) * width
    work += config.audio_layers * _layer(audio, width, inner) + config.vision_layers * _layer(vision, width, inner)
    work += config.cross_layers * (_cross(text, audio, width) + _cross(audio, text, width))
    work += config.cross_vision_layers * (_cross(both, vision, width) + _cross(vision, both, width))
    return work + (both + vision) * width**2


def _end_to_end(config: Any, lengths: Lengths) -> float:
    return _fusion(config, lengths) + lengths["vision_len"] * _face(config, lengths)


def _vision(config: Any, lengths: Lengths) -> float:
    steps, width = lengths["vision_len"], config.width
    layers = config.vision_layers * _layer(steps, width, config.feed_forward)
    return layers + steps * width * (config.vision_dim + width)


def _face(config: Any, lengths: Lengths) -> float:
    swin = config.swin
    work = float((swin.image_size // swin.patch) ** 2 * swin.channels * swin.patch**2 * swin.width)
    for stage in swin.stages:
        tokens, inner = stage.size**2, int(stage.width * swin.expansion)
        attention = 4 * tokens * stage.width**2 + 2 * tokens * stage.window**2 * stage.width
        work += stage.depth * (attention + 2 * tokens * stage.width * inner)
        work += 2 * tokens * stage.width**2 if stage.merges else 0
    return work + swin.flat * 512 + 512 * 64


def _layer(steps: int, width: int, inner: int) -> float:
    return 4 * steps * width**2 + 2 * steps**2 * width + 2 * steps * width * inner


def _cross(queries: int, keys: int, width: int) -> float:
    return (2 * queries + 2 * keys + 8 * queries) * width**2 + 2 * queries * keys * width


COUNTS = {"fusion": _fusion, "end_to_end": _end_to_end, "vision": _vision, "face": _face}
