"""From golden cases of mtee to this project: configuration, weights, files and arrays through the public paths."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import CannotMap, Case
from safetensors.torch import load_file

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.data.formats.pickle_writer import dump_plain
from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.data.word_vectors import read_word_vectors
from mer_export.importer import import_checkpoint
from mer_export.metrics.measure import measure
from mer_export.models.mtee.config import EMOTIONS, MODALITIES, SENTIMENT
from mer_export.models.mtee.emotions import TABLE, look_up, shared_inputs
from mer_export.task import Task
from mer_export.untrusted.hdf5 import save_hdf5
from mer_export.weights import bundle_model, export_weights, import_weights
from train.batches import in_batches, make_batch
from train.config import parse_config
from train.systems.mtee.losses import LOSSES, positive_weights
from train.systems.mtee.protocol import MteeProtocol, indicators
from train.systems.mtee.settings import MteeSettings
from train.updates import plateau_schedule

SYSTEM = registry.get("mtee")
TABLE_OF_NAMES = registry.resolve(SYSTEM.weights)
LETTERS = {"t": "text", "a": "audio", "v": "vision"}
STREAMS = {"lonly": "text", "aonly": "audio", "vonly": "vision"}
RNN = {
    *("num_classes", "input_sizes", "hidden_size", "hidden_sizes", "num_layers", "bidirectional", "gru", "dropout"),
    *("modalities", "fusion"),
}
TRANSFER = {"ckpt_num_classes", "ckpt_modalities", "zsl", "emotions"}
TRAINING = {"model", "batch_size", "epochs", "learning_rate", "weight_decay", "clip", "optim", "patience", "loss"}
MULT = {
    "num_heads": "heads",
    "layers": "layers",
    "attn_mask": "masked",
    "relu_dropout": "relu_dropout",
    "d": "width",
    "res_dropout": "residual_dropout",
    "out_dropout": "output_dropout",
    "embed_dropout": "embedding_dropout",
}
MULT_OTHERS = {*STREAMS, "attn_dropout", "attn_dropout_a", "attn_dropout_v", "output_dim", "hidden_dim"}
MULT_OTHERS |= {"orig_d_l", "orig_d_a", "orig_d_v"}
TRANSFORMER = {
    "d_model": "width",
    "nhead": "heads",
    "num_layers": "layers",
    "dim_feedforward": "feed_forward",
    "mlp_hidden": "head_hidden",
    "dropout": "dropout",
}
TRANSFORMER_OTHERS = {"in_features", "out_features", "input_sizes", "original_constants"}


def known(options: dict[str, Any], names: set[str]) -> None:
    unknown = set(options) - names
    if unknown:
        raise CannotMap(f"options {sorted(unknown)} of this case are not known")


def recurrent_config(options: dict[str, Any], model: str) -> dict[str, Any]:
    known(options, RNN | TRANSFER | TRAINING)
    values: dict[str, Any] = {
        "model": model,
        "labels": labels_of(options),
        **dict(zip(("text_dim", "audio_dim", "vision_dim"), options["input_sizes"], strict=True)),
        "hidden_sizes": options["hidden_sizes"],
        "layers": options["num_layers"],
        "bidirectional": options["bidirectional"],
        "cell": "gru" if options["gru"] else "lstm",
        "dropout": options.get("dropout", 0.1),
        "aligned": False,
    }
    if model == "eea":
        return values | {"modalities": [LETTERS[c] for c in options.get("modalities", "tav")]}
    fusion = options["fusion"]
    if "hidden_size" in options:
        values["hidden_size"] = options["hidden_size"]
    return values | {"fusion": fusion, "aligned": fusion != "lf"}


def labels_of(options: dict[str, Any]) -> list[str]:
    return list(options.get("emotions") or [f"class {i}" for i in range(options["num_classes"])])


def mult_config(options: dict[str, Any], _model: str) -> dict[str, Any]:
    known(options, {*MULT} | MULT_OTHERS)
    rates = {m: options.get(f"attn_dropout{s}", 0.0) for m, s in zip(MODALITIES, ("", "_a", "_v"), strict=True)}
    inner = {ours: options[theirs] for theirs, ours in MULT.items() if theirs in options}
    streams = [m for name, m in STREAMS.items() if options.get(name, True)]
    return {
        "model": "mult",
        "labels": [f"class {i}" for i in range(options["output_dim"])],
        **{f"{m}_dim": options[f"orig_d_{c}"] for m, c in zip(MODALITIES, "lav", strict=True)},
        "aligned": False,
        "mult": inner | {"streams": streams, "attention_dropout": rates},
        "buckets": [16],
    }


def transformer_config(options: dict[str, Any], _model: str) -> dict[str, Any]:
    known(options, {*TRANSFORMER} | TRANSFORMER_OTHERS)
    return {
        "model": "transformer",
        "labels": [f"class {i}" for i in range(options["out_features"])],
        **dict(zip(("text_dim", "audio_dim", "vision_dim"), options["input_sizes"], strict=True)),
        "transformer": {ours: options[theirs] for theirs, ours in TRANSFORMER.items() if theirs in options},
    }


CONFIGS = {"eea": recurrent_config, "rnn": recurrent_config, "mult": mult_config, "transformer": transformer_config}


def load_model(case: Case, model: str | None = None) -> Any:
    """The network with the case's weights, through the strict table of names."""
    model = model or case.content["model"]
    config = SYSTEM.parse(CONFIGS[model](case.config, model))
    network = SYSTEM.build(config)
    import_weights(network, load_file(case.folder / "weights.safetensors"), TABLE_OF_NAMES, config)
    return network


def samples(arrays: dict[str, np.ndarray], labels: str | None = None) -> list[Sample]:
    """Utterances of whole rows: what the authors' files hold is data, padding or not."""
    return [
        Sample(
            str(i),
            {m: arrays[m][i] for m in MODALITIES if m in arrays},
            (str(i),),
            arrays[labels][i : i + 1] if labels else None,
        )
        for i in range(len(arrays["text"]))
    ]


def contract_with(config: Any, rows: np.ndarray | None) -> Any:
    """The contract of a config; with word vectors by row where it shares any."""
    contract = SYSTEM.contract(config)
    if rows is None or config.model != "eea":
        return contract
    return contract.with_shared(EMOTIONS, {f"row {i}": tuple(map(float, row)) for i, row in enumerate(rows)})


def emotion_rows(case: Case) -> np.ndarray | None:
    """Vectors of the evaluation's labels, else those of the checkpoint."""
    if "emo_weight" in case.inputs:
        return case.inputs["emo_weight"]
    state = load_file(case.folder / "weights.safetensors")
    return state[TABLE].numpy() if TABLE in state else None


def inputs_of(case: Case, config: Any, extra: int = 0) -> dict[str, torch.Tensor]:
    """One batch; with `extra` steps of padding that hold noise."""
    contract = contract_with(config, emotion_rows(case))
    items = samples(case.inputs)
    longest = {d: max(s.lengths(contract)[d] for s in items) for d in contract.sequence_dims}
    padded = {d: n + (extra if d not in contract.shared_lengths else 0) for d, n in longest.items()}
    arrays = collate(items, contract, padded)
    for m in config.used if extra else ():
        noise = arrays[m][:, -extra:]
        noise[...] = 10 * np.random.default_rng(0).normal(size=noise.shape)
    return {name: torch.from_numpy(a) for name, a in arrays.items()}


@torch.no_grad()
def forward(case: Case) -> dict[str, Any]:
    """Logits and intermediate outputs; garbage in further padding must not change them."""
    if (case.folder / "checkpoint.pt").is_file():
        return checkpoint(case)
    model = load_model(case)
    inner = INNER[case.content["model"]]
    given = inputs_of(case, model.config)
    found = {"logits": model(**given)} | inner(model, given)
    if case.content["model"] != "transformer":
        padded = model(**inputs_of(case, model.config, extra=3))
        assert torch.allclose(padded, found["logits"], atol=1e-5, rtol=1e-5), "padding changes the result"
    # The original returns one dim where the batch is 1.
    found["logits"] = found["logits"].reshape(case.outputs["logits"].shape)
    return {name: value.numpy() for name, value in found.items()}


def eea_inner(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    queries = model.queries(given)
    return {f"score_{m[0]}": q @ given[EMOTIONS].T + o for m, (q, o) in queries.items()}


def rnn_inner(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the head reads."""
    seen: dict[str, torch.Tensor] = {}
    handle = model.head.register_forward_pre_hook(lambda _m, args: seen.update(head_input=args[0]))
    model(**given)
    handle.remove()
    return seen


def mult_inner(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    states = model.states(given)
    return {f"last_h_{'l' if m == 'text' else m[0]}": h for m, h in states.items()}


def transformer_inner(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original's batched behaviour; single semantics is it at batch size 1."""
    for i in range(len(given["text"])):
        alone = {name: value[i : i + 1] for name, value in given.items()}
        assert torch.allclose(model.in_batch(**alone), model(**given)[i : i + 1], atol=1e-5), "single is not batch 1"
    return {"encoder_out": model.encode(given, "batch"), "logits": model.in_batch(**given)}


INNER = {"eea": eea_inner, "rnn": rnn_inner, "mult": mult_inner, "transformer": transformer_inner}


def checkpoint(case: Case) -> dict[str, Any]:
    """A plain pickled checkpoint becomes a bundle; emotions come from a pickle of word vectors."""
    vectors = read_word_vectors(case.folder / "emotions.pt")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        config = recurrent_config(case.config, "eea")
        bundle, _ = import_checkpoint("mtee", case.folder / "checkpoint.pt", {"model": config}, Path(folder) / "b")
        bundle = Bundle.open(bundle.root)
        model, items = bundle_model(bundle), samples(case.inputs)
        for name, capitalise in (("logits", False), ("logits_cap", True)):
            table = look_up(bundle.manifest.task.labels, vectors, capitalise)
            contract = bundle.manifest.contract.with_shared(EMOTIONS, table)
            given = {n: torch.from_numpy(a) for n, a in collate(items, contract).items()}
            found[name] = model(**given).numpy()
        own = shared_inputs(model.config, {"state": load_file(case.folder / "weights.safetensors")})
        assert own == bundle.manifest.contract.shared, "the checkpoint's own table is the default"
    return found


def loss(case: Case) -> dict[str, Any]:
    """Loss and gradient on logits."""
    known(case.config, {"loss", "reduction"})
    if case.config.get("reduction", "mean") != "mean" or case.config["loss"] not in LOSSES:
        raise CannotMap(f"loss {case.config} is not supported")
    logits = torch.from_numpy(case.inputs["logits"]).requires_grad_()
    weight = torch.from_numpy(case.inputs["pos_weight"]) if "pos_weight" in case.inputs else None
    value = LOSSES[case.config["loss"]](logits, torch.from_numpy(case.inputs["target"]), weight)
    value.backward()
    return {"loss": value.detach().numpy().reshape(1), "grad_logits": logits.grad.numpy()}


def metric(case: Case) -> dict[str, Any]:
    """Emotion metrics with their mean appended, or sentiment metrics."""
    if "preds" in case.inputs:
        known(case.config, {"exclude_zero"})
        found = measure(SENTIMENT, case.inputs["truths"].ravel(), case.inputs["preds"].reshape(-1, 1))
        prefix = "non0_" if case.config["exclude_zero"] else ""
        names = {"acc7": "acc_7", "acc5": "acc_5", "acc2": f"{prefix}acc_2", "f1": f"{prefix}f1"}
        return {n: np.asarray([found[n]]) for n in ("mae", "corr")} | {
            n: np.asarray([found[o] / 100]) for n, o in names.items()
        }
    known(case.config, {"threshold"})
    logits, truths = case.inputs["logits"], case.inputs["truths"].astype(np.int64)
    names = tuple(f"class {i}" for i in range(logits.shape[1]))
    # On IEMOCAP the original has one threshold, whatever is asked for.
    level = 0.5 if "acc" in case.outputs else case.config["threshold"]
    task = Task(kind="multilabel", output="logits", labels=names, thresholds=(level,) * len(names))
    found = measure(task, truths.astype(np.float32), logits)
    rows = {"wacc": "weighted_accuracy", "acc": "accuracy", "f1": "weighted_f1", "auc": "auc"}
    by_label = {n: np.asarray([found[f"{row}/{c}"] for c in names] + [found[row]]) / 100 for n, row in rows.items()}
    return by_label | {"overall": np.asarray([found[n] for n in ("strict", "subset", "intersect")]) / 100}


def write_mosei(folder: Path, options: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    names = {"text": "text_{}_emb.h5", "audio": "audio_{}.h5", "vision": "video_{}.h5", "ey": "ey_{}.h5"}
    for key, name in names.items():
        save_hdf5(folder / name.format(options["phase"]), "d1", arrays[key])


def write_iemocap(folder: Path, options: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """One phase of the four classes, and the finer ones of a zero-shot case."""
    name = "iemocap_data.pkl" if options["aligned"] else "iemocap_data_noalign.pkl"
    phase = {key: arrays[key] for key in (*MODALITIES, "labels")}
    (folder / name).write_bytes(dump_plain({options["phase"]: phase}))
    finer = {"text9": "text_{}.p", "covarep9": "covarep_{}.p", "facet9": "facet_{}.p", "y9": "y_{}.p"}
    for key, name in finer.items():
        if key in arrays:
            (folder / name.format(options["phase"])).write_bytes(dump_plain(arrays[key]))


WRITERS = {"mosei_emo": write_mosei, "iemocap": write_iemocap}
"""What writes the authors' files of a case that holds arrays only, by data set."""


def data(case: Case) -> dict[str, Any]:
    """Authors' files to samples; where a cache lies beside raw files both have to give the same."""
    options = case.config
    known(options, {"dataset", "data_seq_len", "data_folder", "aligned", "zsl", "fsl", "phase", "allow_nonfinite"})
    folder = case.folder / "files"
    with tempfile.TemporaryDirectory() as scratch:
        if not folder.is_dir():
            folder = Path(scratch)
            if options["dataset"] not in WRITERS:
                raise CannotMap(f"a case of {options['dataset']} without files")
            WRITERS[options["dataset"]](folder, options, case.inputs)
        found = read(folder, options)
    caches = list(folder.glob("*.pt"))
    if caches and options["zsl"] < 0 and options["fsl"] < 0:
        with tempfile.TemporaryDirectory() as scratch:
            for cache in caches:
                (Path(scratch) / cache.name).write_bytes(cache.read_bytes())
            cached = read(Path(scratch), options)
        for name, value in found.items():
            assert np.array_equal(value, cached[name], equal_nan=value.dtype.kind == "f"), f"{name} of the cache"
    return found


def read(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    # The original knows few-shot of CMU-MOSEI alone and ignores the index elsewhere, which the product refuses.
    few = options["fsl"] if options["dataset"] == "mosei_emo" else -1
    emotions = {
        "zsl": options["zsl"] if options["zsl"] >= 0 else None,
        "fsl": few if few >= 0 else None,
        "aligned": options["aligned"],
        "steps": options["data_seq_len"],
    }
    spec = DataSpec(format="mtee", dataset=options["dataset"], emotions=emotions)
    items = open_corpus(folder, spec).split(options["phase"])
    labels = np.concatenate([s.labels for s in items])
    return {m: np.stack([s.inputs[m] for s in items]) for m in MODALITIES} | {
        "labels": labels,
        "id": np.asarray([int(s.id.split("/")[1]) for s in items]),
        "pos_weight": positive_weights(labels),
    }


def train(case: Case) -> dict[str, Any]:
    """Epochs without shuffling, with the product's loss, optimisers, clipping and schedule."""
    options = case.config
    name, _, fusion = options["model"].partition("_")
    case.content["config"] = options = options | ({"fusion": fusion} if fusion else {})
    model = load_model(case, name)
    contract = contract_with(model.config, emotion_rows(case))
    config = parse_config(
        {
            "system": "mtee",
            "epochs": options["epochs"],
            "batch": options["batch_size"],
            "lr": options["learning_rate"],
            "weight_decay": options["weight_decay"],
            "clip": options["clip"] if options["clip"] > 0 else None,
            "optimizer": options["optim"],
            "plateau": {"patience": options["patience"]},
        }
    )
    items, held_out = samples(case.inputs, "labels"), samples(case.inputs, "labels_valid")
    protocol = MteeProtocol(MteeSettings(loss=options.get("loss", "bce"), shuffle=False))
    protocol.prepare(model, items, torch.device("cpu"))
    optimizer = protocol.updates(model, config).optimizer
    schedule = plateau_schedule(config, optimizer)
    found: dict[str, list[float]] = {
        "train_losses": [],
        "grad_norms": [],
        "valid_batch_losses": [],
        "lr_after_epoch": [],
    }
    for _ in range(config.epochs):
        model.train()
        for group in in_batches(items, config.batch):
            batch = make_batch(group, contract, torch.device("cpu"))
            optimizer.zero_grad()
            value = protocol.step(model, batch)["total"]
            value.backward()
            limit = config.clip or float("inf")
            found["grad_norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
            found["train_losses"].append(value.item())
            optimizer.step()
        model.eval()
        sizes, values = [], []
        with torch.no_grad():
            for group in in_batches(held_out, config.batch):
                batch = make_batch(group, contract, torch.device("cpu"))
                values.append(float(protocol.step(model, batch)["total"]))
                sizes.append(len(group))
        found["valid_batch_losses"] += values
        schedule.step(protocol.mean.of(values, sizes))
        found["lr_after_epoch"].append(optimizer.param_groups[0]["lr"])
    with torch.no_grad():
        logits = model(**make_batch(items, contract, torch.device("cpu")).inputs)
    after = {f"after.{n}": v.numpy() for n, v in export_weights(model, TABLE_OF_NAMES, model.config).items()}
    if f"after.{TABLE}" in case.outputs:
        after[f"after.{TABLE}"] = emotion_rows(case)
    labels = indicators(np.concatenate([s.labels for s in items]), len(model.config.labels))
    return after | found | {"final_logits": logits.numpy(), "pos_weight": positive_weights(labels)}


ADAPTERS = {
    **dict.fromkeys(INNER, forward),
    "loss": loss,
    "metric": metric,
    "data": data,
    "train": train,
}
TOLERANCES: dict[str, dict[str, float]] = {}
