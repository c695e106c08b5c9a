"""From golden cases of facialmmt to this project, through the public paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from case import CannotMap, Case, translate
from torch import nn

from mer_export import registry
from mer_export.data.shapes.dialogue_text import pack, spans
from mer_export.layers.bert.config import ROBERTA
from mer_export.layers.steps import real_steps
from mer_export.metrics.measure import measure
from mer_export.models.facialmmt.fusion import confidence, distribution, select_frames
from mer_export.models.facialmmt.network import EndToEnd, MultimodalNetwork
from mer_export.weights import import_weights, load_checkpoints, misfits
from train.systems.facialmmt.protocol import FacialMmtProtocol
from train.systems.facialmmt.settings import FacialMmtSettings
from train.warm_up import warm_up_schedule

BERT = {
    "vocab_size": "vocabulary",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "positions",
    "type_vocab_size": "segments",
    "layer_norm_eps": "epsilon",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
BERT_OTHER = {"family", "pad_token_id", "hidden_act"}
FUSION = {
    "get_text_utt_max_lens": "utterance_len",
    "hidden_size": "width",
    "audio_featExtr_dim": "audio_dim",
    "audio_utt_Transformernum": "audio_layers",
    "get_audio_utt_max_lens": "audio_positions",
    "crossmodal_num_heads_TA": "cross_heads",
    "crossmodal_layers_TA": "cross_layers",
    "crossmodal_attn_dropout_TA": "cross_attention_dropout",
    "crossmodal_num_heads_TA_V": "cross_vision_heads",
    "crossmodal_layers_TA_V": "cross_vision_layers",
    "crossmodal_attn_dropout_TA_V": "cross_vision_attention_dropout",
    "vision_featExtr_dim": "vision_dim",
    "vision_utt_Transformernum": "vision_layers",
    "get_vision_utt_max_lens": "vision_positions",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
FUSION_OTHER = {
    *("plm_name", "text_encoder", "choice_modality", "num_labels", "hidden_act", "layer_norm_eps"),
    *("initializer_range", "max_seq_length"),
}
SWIN = {
    "img_size": "image_size",
    "patch_size": "patch",
    "in_chans": "channels",
    "embed_dim": "width",
    "depths": "depths",
    "num_heads": "heads",
    "window_size": "window",
    "mlp_ratio": "expansion",
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path",
}
SWIN_OTHER = {"backbone_type", "num_labels", "tau", "FacialEmoImpor_threshold"}


def labels(options: dict[str, Any]) -> dict[str, Any]:
    count = options.get("num_labels", 7)
    return {} if count == 7 else {"labels": [str(i) for i in range(count)]}


def fusion_options(options: dict[str, Any], audio_len: int, vision_len: int) -> dict[str, Any]:
    """Our configuration of the fusion model for arrays of these lengths."""
    if options.get("layer_norm_eps", 1e-12) != 1e-12:
        raise CannotMap("the layers have layer norms with epsilon 1e-12")
    family = options["text_encoder"]["family"]
    bert = translate(options["text_encoder"], BERT, BERT_OTHER)
    if family == "roberta":
        first = options["text_encoder"].get("pad_token_id", 1) + 1
        bert = ROBERTA | bert | {"first_position": first}
    elif family != "bert":
        raise CannotMap(f"no text encoder {family!r}")
    special = {n: 0 for n in ("first_token", "last_token", "unknown_token", "padding_token")}
    own = translate(options, FUSION, FUSION_OTHER) | labels(options)
    own |= {"audio_len": audio_len, "vision_len": vision_len, "encoder": family, "bert": bert | special}
    return own | {"vision_dim": own["vision_dim"], "variant": "fusion"}


def swin_options(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("backbone_type", "SwinTransformer") != "SwinTransformer":
        raise CannotMap(f"no backbone {options['backbone_type']!r}")
    return {
        "swin": translate(options, SWIN, SWIN_OTHER),
        "expressions": options.get("num_labels", 7),
        "temperature": options.get("tau", 1.0),
        "threshold": options.get("FacialEmoImpor_threshold", 0.2),
    }


def load_model(case: Case, options: dict[str, Any], *files: str) -> Any:
    """The network with the case's weights, through the strict table of names."""
    record = registry.get("facialmmt")
    config, table = record.parse(options), registry.resolve(record.weights)
    model = record.build(config)
    paths = [case.folder / f"{f}.safetensors" for f in files]
    state = load_checkpoints(paths, table, lambda found: misfits(model.state_dict(), found, table, config))
    import_weights(model, state, table, config)
    return model


def tensors(case: Case) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(a) for n, a in case.inputs.items()}


def counts(mask: torch.Tensor) -> torch.Tensor:
    """Lengths of prefix masks."""
    lengths = (mask > 0).sum(1)
    if not bool((real_steps(lengths, mask.shape[1]) == (mask > 0)).all()):
        raise CannotMap("a mask of this case is no prefix")
    return lengths


def text_arguments(case: Case, family: Any) -> dict[str, torch.Tensor]:
    found = spans(case.inputs["text_sep_mask"], case.inputs["utt_in_dia_idx"], family)
    given = tensors(case)
    return {
        "input_ids": given["text_input_ids"],
        "text_lengths": counts(given["text_input_mask"]),
        "text_span": torch.from_numpy(found),
    }


@torch.no_grad()
def multimodal(case: Case) -> dict[str, Any]:
    """All states, from frames that are selected already."""
    given, options = tensors(case), case.config
    if options.get("choice_modality", "T+A+V") != "T+A+V":
        raise CannotMap("only T+A+V has a network")
    audio, vision = given["audio_inputs"], given["vision_inputs"]
    parsed = fusion_options(options, audio.shape[1], vision.shape[1])
    parsed["expressions"] = vision.shape[2] - parsed["vision_dim"]
    model: MultimodalNetwork = load_model(case, parsed, "weights")
    text = text_arguments(case, parsed["encoder"])
    hidden = model.bert(text["input_ids"], None, text["text_lengths"])
    text_states = model.utterance_text(hidden, text["text_lengths"], text["text_span"])
    found = model.combine(
        {
            "text": text_states,
            "audio": (audio, real_steps(counts(given["audio_mask"]), audio.shape[1])),
            "vision": (vision, real_steps(counts(given["vision_mask"]), vision.shape[1])),
        }
    )
    named = {
        "text_hidden": hidden,
        "text_utt_feat": found.states["text"],
        "text_utt_mask": text_states[1].float(),
        "audio_trans": found.states["audio"],
        "vision_trans": found.states["vision"],
        "text_cross_audio": found.crossed["text_from_audio"],
        "audio_cross_text": found.crossed["audio_from_text"],
        "vision_cross_ta": found.crossed["vision_from_both"],
        "ta_cross_vision": found.crossed["both_from_vision"],
        "fused_mask": found.real.float(),
        "alpha": found.weights,
        "pooled": found.pooled,
        "logits": found.logits,
    }
    return {n: t.numpy() for n, t in named.items()}


@torch.no_grad()
def end_to_end(case: Case) -> dict[str, Any]:
    """Two weight files, images in, through the exported forward; the parts agree with it."""
    given, options = tensors(case), case.config["multimodal"]
    audio, vision = given["audio_inputs"], given["vision_inputs"]
    parsed = fusion_options(options, audio.shape[1], vision.shape[1]) | swin_options(case.config["swin"])
    parsed |= {"variant": "end_to_end", "threshold": case.config["FacialEmoImpor_threshold"]}
    model: EndToEnd = load_model(case, parsed, "weights_multimodal", "weights_swin")
    frames = counts(given["vision_mask"])
    if not torch.equal(frames, given["num_frames"]):
        raise CannotMap("there are not as many images as frames")
    arguments = text_arguments(case, parsed["encoder"]) | {
        "audio": audio,
        "audio_lengths": counts(given["audio_mask"]),
        "vision": vision,
        "vision_lengths": frames,
    }
    logits = model(**arguments, images=given["images"], gumbel_noise=given["gumbel_noise"])
    real = real_steps(frames, vision.shape[1])
    likely = distribution(model.expressions(given["images"], frames), given["gumbel_noise"], model.config.temperature)
    rows, kept = select_frames(vision, torch.where(real[..., None], likely, 0.0), real, model.config.threshold)
    protocol = FacialMmtProtocol(FacialMmtSettings())
    return {
        "logits": logits.numpy(),
        "vision_inputs_concat": rows.numpy(),
        "vision_mask_out": kept.float().numpy(),
        "loss": protocol.class_loss(logits, given["labels"]).numpy(),
    }


def unimodal(case: Case) -> dict[str, Any]:
    """States, loss and gradients; the exported forward gives the same logits."""
    given, options = tensors(case), case.config
    names = {n: FUSION[n] for n in FUSION if not n.startswith(("audio", "get_audio", "get_text", "crossmodal"))}
    others = {"num_labels", "hidden_act", "layer_norm_eps", "initializer_range"}
    parsed = translate(options, names, others) | labels(options)
    parsed |= {"variant": "vision", "vision_len": given["vision"].shape[1]}
    model = load_model(case, parsed, "weights")
    lengths = counts(given["vision_mask"])
    states, pooled, weights, logits = model.combine(given["vision"], lengths)
    loss = FacialMmtProtocol(FacialMmtSettings()).class_loss(logits, given["labels"])
    loss.backward()
    error = (model(given["vision"], lengths) - logits).abs().max()
    assert error == 0, f"the exported forward differs by {error}"
    named = {"vision_trans": states, "pooled": pooled, "alpha": weights, "logits": logits, "loss": loss}
    return {n: t.detach().numpy() for n, t in named.items()} | gradients(case, model, parsed)


def swin(case: Case) -> dict[str, Any]:
    """States of every stage, the distribution and what it selects, loss and gradients."""
    given, options = tensors(case), swin_options(case.config) | labels(case.config) | {"variant": "face"}
    model = load_model(case, options, "weights")
    found: dict[str, torch.Tensor] = {}
    parts: dict[str, nn.Module] = {"patch_embed": model.swin.patch_embed, "features": model.batch_norm}
    parts |= {f"stage{i}": stage for i, stage in enumerate(model.swin.layers)}
    for name, module in parts.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out}))
    logits = model(given["images"])
    likely = distribution(logits, given["gumbel_noise"], options["temperature"])
    clear = confidence(likely)
    loss = FacialMmtProtocol(FacialMmtSettings()).class_loss(logits, given["labels"])
    loss.backward()
    found |= {
        "logits": logits,
        "distribution": likely,
        "distribution_no_noise": distribution(logits, torch.zeros_like(logits), options["temperature"]),
        "confidence": clear,
        "keep": (clear > options["threshold"]).float(),
        "aux_loss": loss,
    }
    return {n: t.detach().numpy() for n, t in found.items()} | gradients(case, model, options)


def gradients(case: Case, model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Gradients that the case asks for, under the authors' names."""
    record = registry.get("facialmmt")
    names = registry.resolve(record.weights).renames(record.parse(options))
    own = dict(model.named_parameters())
    wanted = [n.removeprefix("grad.") for n in case.outputs if n.startswith("grad.")]
    return {f"grad.{n}": own[names[n]].grad.numpy() for n in wanted}


def frame_selection(case: Case) -> dict[str, Any]:
    given = tensors(case)
    real = real_steps(given["num_frames"], given["vision_inputs"].shape[1])
    rows, kept = select_frames(
        given["vision_inputs"], given["distribution"], real, case.config["FacialEmoImpor_threshold"]
    )
    return {"vision_inputs_concat": rows.numpy(), "vision_mask_out": kept.float().numpy()}


def loss(case: Case) -> dict[str, Any]:
    """The loss, and what is back-propagated where gradients of several batches add up."""
    given = tensors(case)
    logits = given["logits"].requires_grad_()
    protocol = FacialMmtProtocol(FacialMmtSettings(accumulate=case.config["accumulation_steps"]))
    plain = protocol.class_loss(logits, given["labels"])
    scaled = protocol.scaled(plain)
    scaled.backward()
    found = {"loss": plain, "scaled_loss": scaled, "grad_logits": logits.grad}
    return {n: t.detach().numpy() for n, t in found.items()}


def lr_schedule(case: Case) -> dict[str, Any]:
    options = case.config
    factor = warm_up_schedule(
        options["num_epochs"] * options["loader_len"] / options["accumulation_steps"], options["warm_up"]
    )
    steps = options["num_epochs"] * (options["loader_len"] // options["accumulation_steps"])
    return {"lr": np.asarray([options["lr"] * factor(i) for i in range(steps)])}


def metrics(case: Case) -> dict[str, Any]:
    count = case.inputs["logits"].shape[1]
    task = registry.get("facialmmt").task(
        registry.get("facialmmt").parse(labels({"num_labels": count}) if count != 7 else {})
    )
    found = measure(task, case.inputs["labels"], case.inputs["logits"])
    ids = np.union1d(case.inputs["labels"], case.inputs["logits"].argmax(1))
    return {
        "weighted_f1": found["weighted_f1"] / 100,
        "per_class_f1": np.asarray([found[f"f1/{task.labels[i]}"] / 100 for i in ids]),
        "per_class_ids": ids,
    }


def text_inputs(case: Case) -> dict[str, Any]:
    options = case.config
    special = options["special_ids"]
    packing: Any = "roberta" if options["plm_name"].startswith("roberta") else "bert"
    first, last = (special[n] for n in (("<s>", "</s>") if packing == "roberta" else ("[CLS]", "[SEP]")))
    longest = options["Max_seq_length"]
    found = {n: np.zeros((len(case.inputs["utt_lens"]), longest), np.int64) for n in case.outputs}
    for row, (words, sizes) in enumerate(zip(case.inputs["utt_tokens"], case.inputs["utt_lens"], strict=True)):
        packed = pack(
            [w[:n].tolist() for w, n in zip(words, sizes, strict=True) if n >= 0], packing, first, last, longest
        )
        found["input_ids"][row, : len(packed.ids)] = packed.ids
        found["input_mask"][row, : len(packed.ids)] = 1
        found["sep_mask"][row, list(packed.closing)] = 1
    return found


ADAPTERS = {
    "multimodal_T+A+V": multimodal,
    "end_to_end": end_to_end,
    "unimodal_V": unimodal,
    "swin_face_expression": swin,
    "frame_selection": frame_selection,
    "loss": loss,
    "lr_schedule": lr_schedule,
    "metrics": metrics,
    "text_inputs": text_inputs,
}
TOLERANCES: dict[str, dict[str, float]] = {}
