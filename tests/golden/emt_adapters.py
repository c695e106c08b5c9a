"""From golden cases of emt, mult and tfr_net to this project, through the public paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import emt_data_adapters
import numpy as np
import torch
from case import CannotMap, Case, translate
from emt_data_adapters import SCALE_OF, published
from safetensors.torch import load_file

from mer_export import registry
from mer_export.metrics.measure import measure
from mer_export.models.emt.network import Emt, View
from mer_export.models.utterance import MODALITIES
from mer_export.weights import import_weights
from train.config import parse_config
from train.systems.emt.incomplete import PairedBatch, prediction_loss
from train.systems.emt.protocol import EmtProtocol
from train.systems.emt.restoration import TFR_EPSILON, attraction, emt_losses, reconstruction
from train.systems.emt.settings import EmtSettings

AUTHORS = {"context": "gmc_tokens", "text": "text", "audio": "audio", "vision": "video"}
"""Names of the losses and vectors; arrays say vision."""
RECONSTRUCTION = {"SmoothL1Loss": "smooth_l1", "L1Loss": "l1", "MSELoss": "mse"}
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
    "pad_token_id": "padding_token",
}
EMT = {
    "a_lstm_hidden_size": "audio_hidden",
    "v_lstm_hidden_size": "vision_hidden",
    "audio_out": "audio_out",
    "video_out": "vision_out",
    "d_model": "width",
    "fusion_layers": "depth",
    "heads": "heads",
    "learnable_pos_emb": "learnable_positions",
    "emb_dropout": "position_dropout",
    "attn_dropout": "attention_dropout",
    "ff_dropout": "feed_forward_dropout",
    "ff_expansion": "expansion",
    "mpu_share": "share_directions",
    "modality_share": "share_modalities",
    "layer_share": "share_layers",
    "attn_act_fn": "pooling",
    "post_fusion_dim": "head_width",
    "post_fusion_dropout": "head_dropout",
}
EMT_OTHER = {
    *("language", "feature_dims", "a_lstm_layers", "v_lstm_layers", "text_out", "a_lstm_dropout", "v_lstm_dropout"),
    *("gmc_tokens_pred_dim", "text_pred_dim", "audio_pred_dim", "video_pred_dim", "recon_loss", "loss_attra_weight"),
    *("loss_recon_weight", "use_finetune", "need_data_aligned", "missing_rate", "missing_seed", "datasetName", "bert"),
    *("update_epochs", "t_bert_dropout", "H", "batch_size", "early_stop"),
    *(f"{kind}_{m}" for kind in ("learning_rate", "weight_decay") for m in ("bert", "audio", "video", "other")),
}
TRANSFORMER = {
    "nlevels": "levels",
    "attn_mask": "causal",
    "text_dropout": "text_dropout",
    "attn_dropout": "attention_dropout",
    "attn_dropout_a": "attention_dropout_audio",
    "attn_dropout_v": "attention_dropout_vision",
    "relu_dropout": "relu_dropout",
    "embed_dropout": "embedding_dropout",
    "res_dropout": "residual_dropout",
}
MULT = {**TRANSFORMER, "output_dropout": "output_dropout"}
TFR_NET = {
    **TRANSFORMER,
    "generatorModule": "generator",
    "fusionModule": "fusion",
    "use_gen_fusion": "fuse_generated",
    "fusion_gru_layers": "fusion_layers",
    "use_linear": "fusion_linear",
    "cls_hidden_dim": "head_width",
    "fusion_drop": "fusion_dropout",
    "cls_dropout": "head_dropout",
}
TRANSFORMER_OTHER = {
    *("language", "feature_dims", "seq_lens", "dst_feature_dim_nheads", "use_bert", "use_bert_finetune", "bert"),
    *("conv1d_kernel_size_l", "conv1d_kernel_size_a", "conv1d_kernel_size_v", "alignmentModule", "recloss_type"),
    *("without_generator", "fusion_t_in", "fusion_a_in", "fusion_v_in", "fusion_t_hid", "fusion_a_hid"),
    *("fusion_v_hid", "weight_gen_loss", "datasetName"),
    *("trans_hid_t", "trans_hid_a", "trans_hid_v", "trans_hid_t_drop", "trans_hid_a_drop", "trans_hid_v_drop"),
}


def bert_config(options: dict[str, Any]) -> dict[str, Any]:
    return translate(options, BERT, {"hidden_act"})


def emt_config(options: dict[str, Any]) -> Any:
    """Our configuration of the authors' options."""
    _, audio, vision = options["feature_dims"]
    if options.get("a_lstm_layers", 1) != 1 or options.get("v_lstm_layers", 1) != 1:
        raise CannotMap("more than one recurrent layer does not run in the original")
    return registry.get("emt").parse(
        translate(options, EMT, EMT_OTHER)
        | {
            "bert": bert_config(options["bert"]),
            "audio_dim": audio,
            "vision_dim": vision,
            "encoder_dropout": {"audio": options["a_lstm_dropout"], "vision": options["v_lstm_dropout"]},
            "restoration": {name: options[f"{theirs}_pred_dim"] for name, theirs in AUTHORS.items()},
            "scale": SCALE_OF[options["datasetName"]],
            "buckets": [{"text_len": 8, "audio_len": 8, "vision_len": 8}],
        }
    )


def load_model(case: Case, system: str, config: Any, file: str = "weights") -> Any:
    """The network with the case's weights, through the strict table of names."""
    record = registry.get(system)
    model = record.build(config)
    import_weights(model, load_file(case.folder / f"{file}.safetensors"), registry.resolve(record.weights), config)
    return model


def batch_of(arrays: dict[str, np.ndarray], prefix: str = "") -> PairedBatch:
    """Both views of padded arrays: text at the length of its array, frames at the longest of the batch."""
    given = {n.removeprefix(prefix): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}
    longest = {m: int(given[f"{m}_lengths"].max()) for m in ("audio", "vision")}
    tokens = given["text"][:, 1]
    missing = {"text": tokens - given["text_missing_mask"]}
    for m, steps in longest.items():
        missing[m] = (given[f"{m}_mask"] - given[f"{m}_missing_mask"])[:, :steps].float()
    views = []
    for suffix in ("", "_m"):
        ids, _, segments = given[f"text{suffix}"].long().unbind(1)
        view = {"input_ids": ids, "token_type_ids": segments, "text_lengths": tokens.sum(1).long()}
        for m, steps in longest.items():
            view |= {m: given[f"{m}{suffix}"][:, :steps], f"{m}_lengths": given[f"{m}_lengths"]}
        views.append(view)
    return PairedBatch(complete=views[0], incomplete=views[1], missing=missing, labels=given["labels"].flatten())


def protocol_of(options: dict[str, Any]) -> EmtProtocol:
    """The published protocol with the case's settings."""
    names = {"text": "bert", "audio": "audio", "vision": "video", "other": "other"}
    groups = {
        ours: {"lr": options[f"learning_rate_{theirs}"], "weight_decay": options[f"weight_decay_{theirs}"]}
        for ours, theirs in names.items()
        if f"learning_rate_{theirs}" in options
    }
    return EmtProtocol(
        EmtSettings.model_validate(
            {
                **groups,
                "train_text_encoder": options["use_finetune"],
                "accumulate": options.get("update_epochs", 4),
                "attraction_weight": options["loss_attra_weight"],
                "reconstruction_weight": options["loss_recon_weight"],
                "reconstruction": RECONSTRUCTION[options["recon_loss"]],
                "empty_text": "everywhere",
            }
        )
    )


def loss_terms(parts: dict[str, torch.Tensor], prefix: str = "") -> dict[str, Any]:
    """Losses under the authors' names."""
    names = {"prediction": "loss_pred_m", "complete": "loss_pred", "attraction": "loss_attra"}
    names |= {"reconstruction": "loss_recon", "total": "loss"}
    names |= {f"attraction/{n}": f"loss_attra_{theirs}" for n, theirs in AUTHORS.items()}
    names |= {f"reconstruction/{n}": f"loss_recon_{theirs}" for n, theirs in AUTHORS.items()}
    return {prefix + names[n]: part.detach().reshape(1).numpy() for n, part in parts.items()}


def states(view: View, suffix: str) -> dict[str, torch.Tensor]:
    found = {f"pred{suffix}": view.output}
    found |= {f"fusion_in_gmc{suffix}": view.encoded.context, f"fusion_out_gmc{suffix}": view.context}
    for n, theirs in AUTHORS.items():
        found |= {f"z_{theirs}{suffix}": view.target[n], f"p_{theirs}{suffix}": view.guess[n]}
    for m in MODALITIES:
        found[f"fusion_in_{AUTHORS[m]}{suffix}"] = view.encoded.projected[m]
        found[f"fusion_out_{AUTHORS[m]}{suffix}"] = view.local[m]
    return found


@torch.no_grad()
def emt(case: Case) -> dict[str, Any]:
    """Both views, all states, all losses; the exported path gives the same predictions where texts have words."""
    model: Emt = load_model(case, "emt", emt_config(case.config))
    batch, protocol = batch_of(case.inputs), protocol_of(case.config)
    whole, part, rebuilt = protocol.prepare_module(model)(batch.complete, batch.incomplete)
    found = states(whole, "") | states(part, "_m") | {f"{AUTHORS[m]}_recon": x for m, x in rebuilt.items()}
    found["text_for_recon"] = whole.encoded.local["text"]
    words = batch.complete["text_lengths"] > 2
    for view, inputs in ((whole, batch.complete), (part, batch.incomplete)):
        error = (model(**inputs) - view.output)[words].abs().max()
        assert error <= 1e-5, f"the inference path differs from the training path by {error}"
    losses = loss_terms(protocol.losses(whole, part, rebuilt, batch))
    return {n: x.numpy() for n, x in found.items()} | losses


def emt_loss(case: Case) -> dict[str, Any]:
    """Loss terms and gradients for each distance of the reconstruction."""
    found: dict[str, Any] = {}
    for theirs, distance in RECONSTRUCTION.items():
        given = {n: torch.from_numpy(a) for n, a in case.inputs.items()}
        outputs = [
            n for n in given if n.startswith(("pred", "p_")) or n in ("text_recon", "audio_recon", "video_recon")
        ]
        for n in outputs:
            given[n].requires_grad_()
        vectors = {
            f"{kind}{suffix}": {n: given[f"{kind}_{a}{suffix}"] for n, a in AUTHORS.items()}
            for kind in ("p", "z")
            for suffix in ("", "_m")
        }
        rebuilt = {}
        for m in MODALITIES:
            guess = given[f"{AUTHORS[m]}_recon"]
            target = given["text_for_recon"] if m == "text" else given[m][:, : guess.shape[1]]
            missing = (given[f"{m}_mask"] - given[f"{m}_missing_mask"]).float()
            missing = missing[:, 1:] if m == "text" else missing[:, : guess.shape[1]]
            rebuilt[m] = reconstruction(guess, target, missing, distance)
        parts = emt_losses(
            (prediction_loss(given["pred_m"], given["labels"]), prediction_loss(given["pred"], given["labels"])),
            attraction(vectors["p"], vectors["z"], vectors["p_m"], vectors["z_m"]),
            rebuilt,
            case.config["loss_attra_weight"],
            case.config["loss_recon_weight"],
        )
        parts["total"].backward()
        found |= loss_terms(parts, f"{theirs}.")
        found |= {f"{theirs}.grad.{n}": given[n].grad.numpy() for n in outputs}
    return found


def emt_epoch(case: Case) -> dict[str, Any]:
    """One epoch of the protocol, then validation where the case has it; the weights after it are compared here."""
    config = emt_config(case.config)
    model: Emt = load_model(case, "emt", config)
    protocol = protocol_of(case.config)
    module, updates = (
        protocol.prepare_module(model).train(),
        protocol.updates(model, parse_config({"system": "emt", "epochs": 1})),
    )
    found: dict[str, Any] = {}
    steps = 0
    for number, prefix in enumerate(_prefixes(case.inputs, "train")):
        parts = _run(protocol, module, batch_of(case.inputs, f"{prefix}."), prefix, found)
        updates.before(number)
        parts["total"].backward()
        steps += updates.after(number)
    found |= _validation(case, protocol, module.eval(), config)
    _compare_weights(case, model, config, steps)
    return found


@torch.no_grad()
def _validation(case: Case, protocol: EmtProtocol, module: Any, config: Any) -> dict[str, Any]:
    """Losses and metrics of the held-out batches, under the names that the authors have for the data set's scale."""
    found: dict[str, Any] = {}
    totals, scores, labels = [], [], []
    for prefix in _prefixes(case.inputs, "valid"):
        batch = batch_of(case.inputs, f"{prefix}.")
        parts = _run(protocol, module, batch, prefix, found)
        totals.append({n: float(parts[n]) for n in ("total", "prediction")})
        scores.append(found[f"{prefix}.pred_m"])
        labels.append(batch.labels.numpy())
    if not totals:
        return found
    metrics = measure(registry.get("emt").task(config), np.concatenate(labels), np.concatenate(scores))
    found |= {f"valid.{n}": v for n, v in published(config.scale, metrics).items()}
    for theirs, ours in (("Loss", "total"), ("Loss(pred_m)", "prediction")):
        found[f"valid.{theirs}"] = np.asarray([np.mean([t[ours] for t in totals])])
    return found


def _run(protocol: EmtProtocol, module: Any, batch: PairedBatch, prefix: str, found: dict[str, Any]) -> Any:
    whole, part, rebuilt = module(batch.complete, batch.incomplete)
    parts = protocol.losses(whole, part, rebuilt, batch)
    found |= loss_terms(parts, f"{prefix}.")
    found |= {f"{prefix}.pred": whole.output.detach().numpy(), f"{prefix}.pred_m": part.output.detach().numpy()}
    return parts


def _prefixes(arrays: Iterable[str], kind: str) -> list[str]:
    return sorted({n.split(".")[0] for n in arrays if n.startswith(kind)})


def _compare_weights(case: Case, model: Emt, config: Any, steps: int) -> None:
    after = load_model(case, "emt", config, "weights_after").state_dict()
    # Key biases have no gradient; in the reference Adam turns rounding noise into steps of the learning rate.
    noise = steps * case.config["learning_rate_bert"]
    for name, value in model.state_dict().items():
        atol = noise if name.endswith("key_bias") else case.content["atol"]
        error = float((value - after[name]).abs().max())
        assert error <= atol, f"{name} after the epoch differs by {error:.2g}, atol {atol:g}"


def transformer_config(system: str, options: dict[str, Any], names: dict[str, str], extra: dict[str, Any]) -> Any:
    _, audio, vision = options["feature_dims"]
    width, heads = options["dst_feature_dim_nheads"]
    return registry.get(system).parse(
        translate(options, names, TRANSFORMER_OTHER)
        | {
            "bert": bert_config(options["bert"]),
            "audio_dim": audio,
            "vision_dim": vision,
            "arrays": dict(zip(("text_len", "audio_len", "vision_len"), options["seq_lens"], strict=True)),
            "kernels": {m: options[f"conv1d_kernel_size_{k}"] for m, k in zip(MODALITIES, "lav", strict=True)},
            "width": width,
            "heads": heads,
        }
        | extra
    )


@torch.no_grad()
def mult(case: Case) -> dict[str, Any]:
    """Prediction and last-step features of the incomplete view."""
    model = load_model(case, "mult", transformer_config("mult", case.config, MULT, {}))
    ids, mask, segments = torch.from_numpy(case.inputs["text_m"]).long().unbind(1)
    view = {"input_ids": ids, "token_type_ids": segments, "text_lengths": mask.sum(1)}
    for m in ("audio", "vision"):
        frames = torch.from_numpy(case.inputs[f"{m}_m"])
        view |= {m: frames, f"{m}_lengths": torch.full((len(frames),), frames.shape[1])}
    features = model.features(view)
    found = {f"Feature_{m[0]}": features[m] for m in MODALITIES}
    found |= {"Feature_f": torch.cat(list(features.values()), dim=-1), "M": model(**view)}
    return {n: x.numpy() for n, x in found.items()}


@torch.no_grad()
def tfr_net(case: Case) -> dict[str, Any]:
    """Prediction of the exported path; alignment, generation and its losses as in training."""
    options = case.config
    if options.get("alignmentModule", "crossmodal_attn") != "crossmodal_attn":
        raise CannotMap(f"alignmentModule {options['alignmentModule']!r} is not supported")
    extra = {"fusion_widths": {m: options[f"fusion_{k}_hid"] for m, k in zip(MODALITIES, "tav", strict=True)}}
    extra |= {"generator": "none"} if options.get("without_generator") else {}
    model = load_model(case, "tfr_net", transformer_config("tfr_net", options, TFR_NET, extra))
    batch = batch_of(case.inputs)
    aligned, whole = model.align(batch.incomplete), model.align(batch.complete)
    found: dict[str, Any] = {"prediction": model(**batch.incomplete)}
    mixed = model.reconstruction.mixed(aligned.states, "batch")
    guesses = model.reconstruction(aligned.states, "batch")
    targets = {"text": whole.features["text"], "audio": batch.complete["audio"], "vision": batch.complete["vision"]}
    losses = {}
    for m in MODALITIES:
        steps = min(targets[m].shape[1], batch.missing[m].shape[1])
        guess, target = guesses[m][:, :steps], targets[m][:, :steps]
        losses[m] = reconstruction(guess, target, batch.missing[m][:, :steps], epsilon=TFR_EPSILON)
        found |= {f"{m}_h": aligned.states[m], f"{m}_h_g": mixed[m], f"gen_{m[0]}": guesses[m]}
        found[f"generation_loss_{m}"] = losses[m].reshape(1)
    weights = dict(zip(MODALITIES, options["weight_gen_loss"], strict=True))
    found["weighted_generation_loss"] = sum(weights[m] * losses[m] for m in MODALITIES).reshape(1)
    return {n: x.numpy() for n, x in found.items()}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "EMT_DLFR": emt,
    "EMT_DLFR losses": emt_loss,
    "EMT_DLFR one training epoch": emt_epoch,
    "MULT": mult,
    "TFR_NET": tfr_net,
    **emt_data_adapters.ADAPTERS,
}
TOLERANCES: dict[str, dict[str, float]] = {}
