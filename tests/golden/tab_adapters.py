"""From golden cases of tab to this project, through the public paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from case import CannotMap, Case
from safetensors.torch import load_file

from mer_export import registry
from mer_export.data.collate import collate
from mer_export.data.formats.tab.folds import cross_validation, held_out_sessions, session_five
from mer_export.data.formats.tab.iemocap_release import parse_dialogue
from mer_export.data.formats.tab.reader import read_table
from mer_export.data.media.sound import read_sound
from mer_export.data.open import open_corpus
from mer_export.data.shapes.windows import context_windows
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.speech_dictionary import SpeechDictionary
from mer_export.encoders.vq_wav2vec.config import from_arguments
from mer_export.encoders.vq_wav2vec.network import WEIGHT_MAP as VQ_MAP
from mer_export.encoders.vq_wav2vec.network import VqWav2vec
from mer_export.layers.bert.config import roberta
from mer_export.layers.bert.network import Bert, by_padding
from mer_export.models.tab.network import Tab
from mer_export.models.tab.weights import ENCODER_MAP
from mer_export.weights import WeightMap, export_weights, import_weights
from train.systems.tab.losses import attention_penalty, batch_averages, margin_loss
from train.systems.tab.newbob import Newbob
from train.systems.tab.protocol import TabProtocol
from train.systems.tab.settings import TabSettings

SYSTEM = registry.get("tab")
VARIANTS = {
    (True, True, True): "fusion",
    (True, True, False): "lhs",
    (True, False, True): "text_tab",
    (False, True, True): "audio_tab",
    (False, False, True): "tab",
}
ENCODER = {
    "vocab_size": "vocabulary",
    "encoder_layers": "layers",
    "encoder_embed_dim": "hidden",
    "encoder_ffn_embed_dim": "feed_forward",
    "encoder_attention_heads": "heads",
    "max_positions": "positions",
    "pad_idx": "padding_token",
}
ENCODER_OTHER = {"mask_idx", "lengths"}
KNOWN = {
    *("encoders", "num_heads", "n_utterances", "fuse_dim", "output_dim", "freeze_models", "text_lengths"),
    *("audio_lengths", "layer_cat_in", "branches", "omitted_prefixes", "text_dim", "audio_dim"),
    *("bert_dim", "atten_in_dim", "attention_unit"),
}
TINY = {"vocabulary": 8, "layers": 1, "heads": 1, "feed_forward": 4, "positions": 8}


def encoder(options: dict[str, Any]) -> dict[str, Any]:
    """Our values of an encoder's options."""
    unknown = set(options) - set(ENCODER) - ENCODER_OTHER
    if unknown:
        raise CannotMap(f"options {sorted(unknown)} of an encoder are not known")
    values = {ours: options[theirs] for theirs, ours in ENCODER.items() if theirs in options}
    values["first_position"] = values.get("padding_token", 1) + 1
    return values | {"positions": values["positions"] + values["first_position"], "segments": 0}


def model_config(options: dict[str, Any]) -> Any:
    """Our configuration of the authors' options."""
    unknown = set(options) - KNOWN
    if unknown:
        raise CannotMap(f"options {sorted(unknown)} of this case are not known")
    branches = options.get("branches", {"text": True, "audio": True, "tab": True})
    if options["n_utterances"] % 2 == 0:
        raise CannotMap(f"{options['n_utterances']} slots are no window of neighbours on both sides")
    encoders = {m: encoder(o) for m, o in options.get("encoders", {}).items()}
    for m in ("text", "audio"):
        encoders.setdefault(m, TINY | {"hidden": options.get(f"{m}_dim", 4)})
    return SYSTEM.parse(
        {
            "variant": VARIANTS[branches["text"], branches["audio"], branches["tab"]],
            "labels": [f"class {i}" for i in range(options.get("output_dim", 4))],
            **encoders,
            "context": options["n_utterances"] // 2,
            "sentence_dim": options.get("bert_dim", 768),
            "tab_width": options.get("atten_in_dim", 64),
            "tab_attention": options.get("attention_unit", 64),
            "tab_heads": options["num_heads"] or 1,
            "head_width": options.get("fuse_dim", 128),
        }
    )


def load_model(case: Case, prefix: str = "") -> Tab:
    """The network with the case's weights; what a case about a part leaves out keeps its own values."""
    config = model_config(case.config)
    model = SYSTEM.build(config)
    table: WeightMap = registry.resolve(SYSTEM.weights)
    state = {prefix + n: t for n, t in load_file(case.folder / "weights.safetensors").items()}
    if "encoders" not in case.config:
        state = export_weights(model, table, config) | state
    import_weights(model, state, table, config)
    return model


def tensors(case: Case) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(a) for n, a in case.inputs.items()}


def answers(model: Tab, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs by contract name, and the vectors that the head joins."""
    contract = SYSTEM.contract(model.config)
    outputs = model(**{s.name: given[s.name] for s in contract.inputs})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {s.name: x for s, x in zip(contract.outputs, outputs, strict=True)}
    for m in model.encoders:
        found[f"{m}_cls"] = model.encode(m, given[f"{m}_tokens"])
    if model.context is not None:
        found["tab_vector"] = model.context(given["tab_embedding"])[0]
    return found


def network(case: Case) -> dict[str, Any]:
    """A forward pass of any variant; with more padding it is the same."""
    model, given = load_model(case), tensors(case)
    if "target" in given:
        return train_step(case, model, given)
    with torch.no_grad():
        found = answers(model, given)
        for m in model.encoders:
            ids = given[f"{m}_tokens"]
            more = torch.nn.functional.pad(ids, (0, model.config.encoders[m].longest - ids.shape[1]), value=1)
            longer = model.encode(m, more)
            assert torch.allclose(longer, found[f"{m}_cls"], atol=case.content["atol"])
    return {n: x.numpy() for n, x in found.items()}


def head(case: Case) -> dict[str, Any]:
    """The published widths, on given encoder outputs."""
    model, given = load_model(case), tensors(case)
    with torch.no_grad():
        assert model.context is not None
        vector, attention = model.context(given["tab_embedding"])
        vectors = {m: given[f"{m}_features"][:, 0] for m in ("text", "audio")}
        return {"logits": model.classify(vectors | {"tab": vector}).numpy(), "attention": attention.numpy()}


def fusion(case: Case) -> dict[str, Any]:
    return head(case) if "text_features" in case.inputs else network(case)


def branch(case: Case) -> dict[str, Any]:
    """The time-asynchronous branch alone."""
    model = load_model(case, prefix="b3.")
    assert model.context is not None
    with torch.no_grad():
        output, attention = model.context(torch.from_numpy(case.inputs["tab_embedding"]))
    return {"output": output.numpy(), "attention": attention.numpy()}


def train_step(case: Case, model: Tab, given: dict[str, torch.Tensor]) -> dict[str, Any]:
    """One step of the protocol, dropout off."""
    frozen: Any = "all" if case.config.get("freeze_models", True) else 0
    protocol = TabProtocol(TabSettings(freeze={"text": frozen, "audio": frozen}))
    protocol.prepare(model, [], torch.device("cpu"))
    names = registry.resolve(SYSTEM.weights).renames(model.config)
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-5)
    found = answers(model, given)
    loss = protocol.class_loss(found["logits"], given["target"])
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    adam.step()
    after = model.state_dict()
    for theirs, ours in names.items():
        if ours in gradients:
            found[f"grad.{theirs}"], found[f"after_step.{theirs}"] = gradients[ours], after[ours]
    return {n: x.detach().numpy() for n, x in (found | {"loss": loss.reshape(1)}).items()}


@torch.no_grad()
def encoder_alone(case: Case) -> dict[str, Any]:
    """A checkpoint of any generation; states of padding count as zeros."""
    config = roberta(**encoder(case.config))
    model = Bert(config).eval()
    import_weights(model, load_file(case.folder / "weights.safetensors"), ENCODER_MAP, config)
    ids, lengths = by_padding(torch.from_numpy(case.inputs["tokens"]), config)
    features = model(ids, None, lengths)
    real = (ids != config.padding_token)[..., None]
    return {"features": (features * real).numpy(), "cls": model.first(ids, None, lengths).numpy()}


@torch.no_grad()
def tokenizer(case: Case) -> dict[str, Any]:
    """Waveform to indices, with what lies between."""
    shape = from_arguments(case.config)
    # A tokenizer with residual connections is no encoder, and yet the authors' network.
    config = SimpleNamespace(network=shape, input=None)
    model = VqWav2vec(config).eval()
    import_weights(model, load_file(case.folder / "weights.safetensors"), VQ_MAP, config)
    audio = torch.from_numpy(case.inputs["audio"])
    features, real = model.features(audio, torch.full((len(audio), 1), audio.shape[1]))
    assert features.shape[-1] == shape.frames(audio.shape[1]) == int(real[0])
    projected = model.project(features, real)
    found = {"features": features, "projected": projected, "indices": model.nearest(projected)}
    return {n: x.detach().numpy() for n, x in found.items()}


def multi_margin(case: Case) -> dict[str, Any]:
    options, given = case.config, tensors(case)
    if options.get("p", 1) != 1 or options.get("reduction", "mean") != "mean":
        raise CannotMap(f"the margin loss {options} is not supported")
    logits, target = given["logits"].requires_grad_(), given["target"]
    loss = margin_loss(logits, target, options["margin"])
    loss.backward()
    each = torch.stack([margin_loss(x[None], t[None], options["margin"]) for x, t in zip(logits, target, strict=True)])
    found = {"loss": loss.reshape(1), "per_sample": each, "grad_logits": logits.grad}
    return {n: x.detach().numpy() for n, x in found.items()}


def penalty(case: Case) -> dict[str, Any]:
    attention = torch.from_numpy(case.inputs["attention"]).requires_grad_()
    value = attention_penalty(attention, case.config["eps"])
    scaled = case.config["coef"] * value
    scaled.backward()
    found = {"penalty": value.reshape(1), "scaled": scaled.reshape(1), "grad_attention": attention.grad}
    return {n: x.detach().numpy() for n, x in found.items()}


def metrics(case: Case) -> dict[str, Any]:
    """The published averages over batches."""
    sizes = case.config["batch_sizes"]
    parts = (torch.from_numpy(case.inputs[n]).split(sizes) for n in ("logits", "target"))
    return {n: np.atleast_1d(v) for n, v in batch_averages(*parts).items()}


def newbob(case: Case) -> dict[str, Any]:
    options = case.config
    schedule = Newbob(options["lr"], threshold=options["threshold"], ramp_from=options["Nmax"])
    rows = []
    for metric in case.inputs["metric"].tolist():
        schedule.step(metric)
        rows.append((schedule.lr, schedule.best_step, int(schedule.ramping)))
    return dict(zip(("lr", "best_epoch", "ramp"), map(np.asarray, zip(*rows, strict=True)), strict=True))


def batch(case: Case) -> dict[str, Any]:
    """The authors' files to one padded batch."""
    options = case.config
    context = {"size": options["context_window"], "max_text": options["max_text_tokens"]}
    context |= {"max_audio": options["max_audio_tokens"]}
    corpus = open_corpus(case.folder / "files", DataSpec(format="tab", context=context))
    order = [r.name for r in read_table(case.folder / "files" / "labels_train_t.txt")]
    samples = sorted(corpus, key=lambda s: order.index(s.id))[: options["batch_size"]]
    config = SYSTEM.parse({"context": options["context_window"]})
    arrays = collate(samples, SYSTEM.contract(config))
    target = np.concatenate([s.labels for s in samples])
    counts = np.bincount(np.concatenate([s.labels for s in corpus]), minlength=len(config.labels))
    onehot = np.eye(len(config.labels), dtype=np.float32)[target][:, None]
    return arrays | {"target": target, "label_onehot": onehot, "class_counts": counts}


def windows(case: Case) -> dict[str, Any]:
    vectors = case.inputs["bert_emb"]
    sessions = [r.session for r in read_table(case.folder / "files" / "no_labels_train_t.txt")]
    return {f"context_{c}": context_windows(vectors, sessions, c) for c in case.config["contexts"]}


def speech_tokens(case: Case) -> dict[str, Any]:
    dictionary = SpeechDictionary.load(case.folder / "files" / "dict.txt")
    return {"tokens": dictionary.encode(case.inputs["indices"])}


def parsed(case: Case) -> dict[str, Any]:
    """Utterances of a dialogue with their recordings; names, classes and text are checked here."""
    folder, options = case.folder / "files", case.config
    name = options["dialogue"]
    expected = json.loads((folder / "expected.json").read_text())
    evaluation, transcript = ((folder / f"{name}.{kind}.txt").read_text() for kind in ("emo", "trans"))
    found = parse_dialogue(name, options["session"], evaluation, transcript, options["first_index"])
    sound = read_sound(folder / f"{name}.wav")
    recording, rate = (sound.samples * 32768).astype(np.int16), sound.rate
    assert options["first_index"] + len(found) == expected["next_index"]
    for utterance, entry in zip(found, expected["utterances"], strict=True):
        own = {"file": f"{utterance.name}.txt", "class_value": utterance.label_id, "text": utterance.text}
        own |= {"n_samples": len(utterance.samples(recording, rate)), "channels": 1, "rate": rate}
        assert own == entry
    return {f"audio_{u.index}": u.samples(recording, rate) for u in found}


def splits(case: Case) -> dict[str, Any]:
    options = case.config
    rows = read_table(case.folder / "files" / "labels_train_t.txt")
    sessions, speakers = [r.session for r in rows], [r.speaker for r in rows]
    main = session_five(sessions, options["seed"], options["val_fraction"])
    found: dict[str, Any] = {f"main_{n}": p for n, p in zip(("train", "val", "test"), vars(main).values(), strict=True)}
    found["fold_holdout_session"] = held_out_sessions(options["seed"])
    for run in range(len(found["fold_holdout_session"])):
        parts = vars(cross_validation(sessions, speakers, run, options["seed"])).values()
        found |= {f"cv{run}_{n}": p for n, p in zip(("train", "val", "test"), parts, strict=True)}
    return {n: np.asarray(x) for n, x in found.items()}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "Fusion": fusion,
    "Fusion (full-size head)": fusion,
    "LHS": network,
    "Roberta_RHS": network,
    "SpeechBert_RHS": network,
    "RHS_train": network,
    "Time_async": branch,
    "fairseq RoBERTa encoder (extract_features)": encoder_alone,
    "vq-wav2vec k-means tokeniser": tokenizer,
    "MultiMarginLoss": multi_margin,
    "attention penalty": penalty,
    "test() / validate()": metrics,
    "newbob": newbob,
    "IemocapDataset + collate_batch": batch,
    "concatenate_tab_embs": windows,
    "Speech-BERT tokenisation": speech_tokens,
    "IEMOCAP parsing": parsed,
    "data splits": splits,
}
TOLERANCES: dict[str, dict[str, float]] = {}
