"""From golden cases of cmerc to this project: configuration, weights and arrays through the public paths."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from case import CannotMap, Case
from safetensors.torch import load_file

from mer_export import registry
from mer_export.data.collate import collate
from mer_export.data.formats.cmerc.difficulty import read_difficulty
from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.models.cmerc.network import Cmerc
from mer_export.weights import import_weights
from train.batches import Batch
from train.config import load_preset
from train.model_metrics import batch_metrics
from train.systems.cmerc import curriculum
from train.systems.cmerc.difficulty import measure_difficulty
from train.systems.cmerc.losses import binary_labels
from train.systems.cmerc.protocol import CmercProtocol
from train.systems.cmerc.settings import CmercSettings
from train.systems.cmerc.views import VIEWS, degraded, time_mean

SYSTEM = registry.get("cmerc")
FIXED = {"graph_type": "hyper", "mm_fusion_mthd": "concat_DHT", "multi_modal": True}
"""Options with one supported value; `graph_construct` has no influence on it."""
THEIRS = {"text": "text", "audio": "audio", "vision": "visual", "intra": "intra", "inter": "inter"}
LETTERS = {"text": "t", "audio": "a", "vision": "v", "intra": "intra", "inter": "inter"}
BASE_MODELS = {"GRU": "gru", "LSTM": "lstm", "Transformer": "transformer"}
KNOWN = {
    *FIXED,
    *("graph_construct", "modals", "base_model", "dataset", "text_dim", "D_g", "graph_hidden_size", "D_m_a", "D_m_v"),
    *("n_speakers", "n_classes", "dropout", "norm", "num_L", "num_K", "use_residue", "use_modal", "use_speaker"),
    *("av_using_lstm", "rank_coff", "mscl_coff", "cscl_coff", "temperature", "lr", "weight_decay", "optimizer"),
    *("class_weights", "focal_gamma", "focal_alpha", "calibrate", "contrastlearning", "seed", "semantics"),
}


def model_config(options: dict[str, Any]) -> Any:
    """Our configuration of the authors' options."""
    unknown = set(options) - KNOWN
    if unknown:
        raise CannotMap(f"options {sorted(unknown)} of this case are not known")
    for name, value in FIXED.items():
        if options.get(name, value) != value:
            raise CannotMap(f"{name} {options[name]!r} is not supported, only {value!r}")
    if sorted(options.get("modals", "avl")) != sorted("avl"):
        raise CannotMap(f"modals {options['modals']!r} is not supported, only 'avl'")
    if options["base_model"] not in BASE_MODELS:
        raise CannotMap(f"base_model {options['base_model']!r} is not known")
    return SYSTEM.parse(
        {
            "labels": [f"class {i}" for i in range(options["n_classes"])],
            "speakers": options["n_speakers"],
            "text_dim": options["text_dim"],
            "audio_dim": options["D_m_a"],
            "vision_dim": options["D_m_v"],
            "base_model": BASE_MODELS[options["base_model"]],
            # The original skips the text linear with GRU on MELD only.
            "text_linear": not (options["dataset"] == "MELD" and options["base_model"] == "GRU"),
            "width": options["D_g"],
            "hidden": options["graph_hidden_size"],
            "hypergraph_layers": options["num_L"],
            "frequency_layers": options["num_K"],
            "dropout": options["dropout"],
            "norm": options["norm"] if options["norm"] in ("BN", "LN", "LN2") else "none",
            "residue": options["use_residue"],
            "speaker_embedding": options["use_speaker"],
            "modal_embedding": options["use_modal"],
            "encode_audio_vision": options["av_using_lstm"],
        }
    )


def load_model(case: Case) -> Cmerc:
    """The network with the case's weights, through the strict table of names."""
    config = model_config(case.config)
    model = SYSTEM.build(config)
    table = registry.resolve(SYSTEM.weights)
    import_weights(model, load_file(case.folder / "weights.safetensors"), table, config)
    assert isinstance(model, Cmerc)
    return model


def samples(arrays: dict[str, np.ndarray], prefix: str = "") -> list[Sample]:
    """Dialogues of time-first padded arrays, as the originals collate them."""
    found = []
    for b, n in enumerate(arrays[f"{prefix}lengths"]):
        n = int(n)
        inputs = {
            "text": np.stack([arrays[f"{prefix}r{k}"][:n, b] for k in (1, 2, 3, 4)]),
            "audio": arrays[f"{prefix}audio"][:n, b],
            "vision": arrays[f"{prefix}visual"][:n, b],
            "speaker": arrays[f"{prefix}qmask"][:n, b].argmax(-1),
        }
        units = tuple(f"{prefix}{b}/{t}" for t in range(n))
        found.append(Sample(f"{prefix}{b}", inputs, units, arrays[f"{prefix}label"][b, :n]))
    return found


def batch_of(model: Cmerc, items: list[Sample], extra: int = 0) -> dict[str, torch.Tensor]:
    """One padded batch; with `extra` steps more padding, and noise in all of it."""
    contract = SYSTEM.contract(model.config)
    longest = max(len(s.units) for s in items)
    arrays = collate(items, contract, {"utterances": longest + extra})
    if extra:
        rng = np.random.default_rng(0)
        for name in ("text", "audio", "vision"):
            for row, sample in enumerate(items):
                padding = arrays[name][row, ..., len(sample.units) :, :]
                padding[...] = 10 * rng.normal(size=padding.shape)
    return {name: torch.from_numpy(a) for name, a in arrays.items()}


def rows(output: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
    """Real rows of (batch, utterances, ...), dialogues concatenated."""
    return torch.cat([output[b, :n] for b, n in enumerate(lengths.tolist())]).detach().numpy()


@torch.no_grad()
def forward(case: Case) -> dict[str, Any]:
    """Batched and single runs, intermediate outputs, and the degraded views of both semantics."""
    model, items = load_model(case), samples(case.inputs)
    inner: dict[str, torch.Tensor] = {}
    hooks = {"gru_text": model.text_encoder, "hyper_nodes": model.hypergraph, "freq_nodes": model.frequency}
    handles = [
        module.register_forward_hook(lambda _m, _i, layers, name=name: inner.__setitem__(name, layers[-1]))
        for name, module in hooks.items()
    ]
    padded = batch_of(model, items)
    lengths = padded["lengths"]
    features = model.features(**padded, semantics="batch")
    for handle in handles:
        handle.remove()
    found: dict[str, Any] = {
        "hidden": rows(features, lengths),
        "log_prob": rows(model.classify(features, lengths), lengths),
        "gru_text": inner["gru_text"].transpose(0, 1).numpy(),
    }
    for name in ("hyper_nodes", "freq_nodes"):
        nodes = [inner[name][b, :, :n].flatten(0, 1) for b, n in enumerate(lengths.tolist())]
        found[name] = torch.cat(nodes).numpy()
    noisy = batch_of(model, items, extra=5)
    features = model.features(**noisy)
    found["hidden_single"] = rows(features, lengths)
    found["log_prob_single"] = rows(model(**noisy), lengths)
    for semantics, suffix in (("batch", ""), ("single", "_single")):
        for name, (modality, context) in VIEWS.items():
            view = dict(padded)
            if modality:
                view[modality] = time_mean(padded[modality], lengths, semantics)
            features = model.features(**view, semantics=semantics, context=context)
            found[f"hidden_mask_{THEIRS[name]}{suffix}"] = rows(features, lengths)
        for name, log_prob in degraded(model, padded, semantics).items():
            found[f"log_prob_mask_{THEIRS[name]}{suffix}"] = rows(log_prob, lengths)
    return found


def protocol_of(options: dict[str, Any]) -> CmercProtocol:
    """Losses of the published preset of the case's data set, with the case's coefficients."""
    preset = load_preset(f"cmerc/{options['dataset'].lower()}")
    settings = CmercSettings.model_validate(preset.protocol)
    names = {
        "rank_coff": "rank_coefficient",
        "mscl_coff": "mscl_coefficient",
        "cscl_coff": "cscl_coefficient",
        "temperature": "temperature",
        "focal_gamma": "focal_gamma",
        "focal_alpha": "focal_alpha",
        "calibrate": "calibrate",
        "contrastlearning": "contrast",
    }
    changed = {ours: options[theirs] for theirs, ours in names.items() if theirs in options}
    protocol = CmercProtocol(settings.model_copy(update=changed))
    default = [1 / f for f in settings.class_frequencies] if isinstance(settings.class_frequencies, tuple) else None
    protocol.set_class_weights(options.get("class_weights", default), torch.device("cpu"))
    return protocol


def loss(case: Case) -> dict[str, Any]:
    """Loss terms, binary labels, and gradients of the total."""
    given = {name: torch.from_numpy(a) for name, a in case.inputs.items()}
    log_prob, hidden = given["log_prob"].requires_grad_(), given["hidden"].requires_grad_()
    views = {name: given[f"log_prob_{letter}"] for name, letter in LETTERS.items()}
    parts = protocol_of(case.config).losses(log_prob, hidden, views, given["label"])
    parts["total"].backward()
    found = {
        **loss_terms(parts),
        "grad_log_prob": log_prob.grad.numpy(),
        "grad_hidden": np.zeros_like(case.inputs["hidden"]) if hidden.grad is None else hidden.grad.numpy(),
    }
    for name, letter in LETTERS.items():
        kind = "c" if name in ("intra", "inter") else "m"
        found[f"{kind}_label_{letter}"] = binary_labels(log_prob, views[name], given["label"]).numpy()
    return found


def loss_terms(parts: dict[str, torch.Tensor]) -> dict[str, Any]:
    theirs = {"rank": "rank_loss"}
    return {theirs.get(name, name): part.detach().numpy() for name, part in parts.items()}


def train_step(case: Case) -> dict[str, Any]:
    """One step of the protocol with Adam; gradients, parameters and buffers under the authors' names."""
    model = load_model(case)
    renames = registry.resolve(SYSTEM.weights).renames(model.config)
    protocol = protocol_of(case.config)
    padded = batch_of(model, samples(case.inputs))
    labels = torch.from_numpy(case.inputs["label"])
    real = torch.from_numpy(case.inputs["umask"]).bool()
    batch = Batch(padded, tuple(real.shape), real.flatten().nonzero()[:, 0], labels[real])
    protocol.begin_epoch(model)
    views = degraded(copy.deepcopy(model), padded, protocol.settings.semantics)
    module = protocol.prepare_module(model).train()
    seen: dict[str, torch.Tensor] = {}
    module.register_forward_hook(lambda _m, _i, out: seen.update(hidden=out[0], log_prob=out[1]))
    if case.config.get("optimizer", "Adam") != "Adam":
        raise CannotMap(f"optimizer {case.config['optimizer']!r} is not supported")
    adam = torch.optim.Adam(model.parameters(), lr=case.config["lr"], weight_decay=case.config["weight_decay"])
    parts = protocol.step(module, batch)
    parts["total"].backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    adam.step()
    found = loss_terms(parts) | {n: batch.rows(t).detach().numpy() for n, t in seen.items()}
    found |= {f"log_prob_{LETTERS[n]}": batch.rows(v).numpy() for n, v in views.items()}
    after = model.state_dict()
    for theirs, ours in renames.items():
        if ours in gradients:
            found[f"grad/{theirs}"] = gradients[ours].numpy()
        found[f"param_after/{theirs}"] = found[f"buffer_after/{theirs}"] = after[ours].numpy()
    trained = [n for n in case.content.get("params_without_grad", []) if renames.get(n) in gradients]
    assert not trained, f"these get no gradient in the original: {trained}"
    return found


def difficulty(case: Case) -> dict[str, Any]:
    """The measurer, one dialogue per batch."""
    prefixes = sorted({name.split("/")[0] for name in case.inputs}, key=lambda p: int(p[1:]))
    items = [s for p in prefixes for s in samples(case.inputs, f"{p}/")]
    found = measure_difficulty(load_model(case), items)
    return {"difficulty": np.asarray([found[s.id] for s in items])}


def metrics(case: Case) -> dict[str, Any]:
    """Published evaluation of given batches."""
    batches = range(case.config["n_batches"])
    scores = [torch.from_numpy(case.inputs[f"log_prob_{i}"]) for i in batches]
    labels = [torch.from_numpy(case.inputs[f"label_{i}"]) for i in batches]
    task = SYSTEM.task(SYSTEM.parse(load_preset(f"cmerc/{case.config['dataset'].lower()}").model))
    found = batch_metrics(task, scores, labels, protocol_of(case.config).class_loss)
    return {
        "avg_loss": found["loss"],
        "avg_accuracy": found["accuracy"],
        "avg_fscore": found["weighted_f1"],
        "pred": task.decide(torch.cat(scores).numpy()),
    }


def data(case: Case) -> dict[str, Any]:
    """Authors' files to collated batches; schedule and selection of the curriculum are checked here."""
    options, content = case.config, case.content
    corpus = open_corpus(case.folder, DataSpec(format="cmerc", dataset=options["dataset"].lower()))
    train, test = corpus.split("train"), corpus.split("test")
    assert [s.id for s in train] == [str(k) for k in content["train_keys"]]
    assert [s.id for s in test] == [str(k) for k in content["test_keys"]]
    found = collated(train[:4], "train_first4", case) | collated(test, "test_all", case)
    (path,) = (case.folder / "caldiff").glob("*.pkl")
    values = read_difficulty(path)
    assert values == {str(k): v for k, v in content["difficulty"].items()}
    for epoch, expected in enumerate(content["schedule"]):
        share = curriculum.ratio(epoch, options["epoch_ratio"], options["scheduler_steps"])
        assert share == expected, f"epoch {epoch}: ratio {share}, reference {expected}"
        chosen = [s.id for s in curriculum.select(train, values, share)]
        assert chosen == [str(k) for k in content["selected_keys_per_epoch"][str(epoch)]], f"epoch {epoch}"
    return found


def collated(items: list[Sample], name: str, case: Case) -> dict[str, Any]:
    """The authors' time-first layout of one batch."""
    speakers = case.outputs[f"{name}/qmask"].shape[-1]
    first = items[0].inputs
    config = SYSTEM.parse(
        {
            "speakers": speakers,
            "text_dim": first["text"].shape[-1],
            "audio_dim": first["audio"].shape[-1],
            "vision_dim": first["vision"].shape[-1],
        }
    )
    arrays = collate(items, SYSTEM.contract(config))
    real = np.arange(arrays["speaker"].shape[1]) < arrays["lengths"][:, None]
    labels = np.zeros(real.shape, dtype=np.int64)
    labels[real] = np.concatenate([s.labels for s in items])
    found = {f"r{k + 1}": arrays["text"][:, k].transpose(1, 0, 2) for k in range(4)}
    found |= {
        "audio": arrays["audio"].transpose(1, 0, 2),
        "visual": arrays["vision"].transpose(1, 0, 2),
        "qmask": (np.eye(speakers)[arrays["speaker"]] * real[..., None]).transpose(1, 0, 2),
        "umask": real.astype(np.float32),
        "label": labels,
    }
    return {f"{name}/{key}": value for key, value in found.items()}


ADAPTERS = {
    "cmerc": forward,
    "cmerc_loss": loss,
    "cmerc_train_step": train_step,
    "cmerc_difficulty": difficulty,
    "cmerc_metrics": metrics,
    "cmerc_data": data,
}
TOLERANCES = {"cmerc_train_step": {"param_after/": 2e-4}}
"""As the case's note says: Adam divides tiny gradients by themselves, rounding may flip a step of 1e-4."""
