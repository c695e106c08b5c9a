"""Tiny bundles of tab with random weights, random utterances, and files for its tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file, save_model

from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.data.tokens.byte_pair_training import train_byte_pairs
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.encoders.vq_wav2vec.config import VqConfig
from mer_export.encoders.vq_wav2vec.network import VqWav2vec
from mer_export.exporters.encoders.sentence import export_encoder
from mer_export.exporters.encoders.speech import write_tokenizer
from mer_export.layers.bert.folder import read_config
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.weights import renames

TEXT = {"vocabulary": 60, "hidden": 16, "layers": 2, "heads": 2, "feed_forward": 24, "positions": 34}
AUDIO = {"vocabulary": 70, "hidden": 12, "layers": 1, "heads": 2, "feed_forward": 24, "positions": 50}
WIDTH = 6
SHORT, LONG = Bucket(text_len=8, audio_len=10), Bucket(text_len=20, audio_len=30)
VARIANTS = ("fusion", "lhs", "text_tab", "audio_tab", "tab")
SENTENCES = ("oh no, not again!", "i'm so happy for you", "what do you mean?", "oh, i'm happy too", "no, no, no!")


def values(variant: str) -> dict[str, Any]:
    """A small configuration of a variant."""
    base = {
        "variant": variant,
        "text": TEXT,
        "audio": AUDIO,
        "context": 1,
        "sentence_dim": WIDTH,
        "tab_width": 8,
        "tab_attention": 6,
    }
    dims = registry.get("tab").parse(base).longest
    buckets = [{d: b[d] for d in dims} for b in (SHORT, LONG)] if dims else []
    return base | {"tab_heads": 2, "head_width": 10, "buckets": buckets}


def make_tab(root: Path, variant: str) -> Bundle:
    """A bundle without variants; every weight has a value of its own."""
    system = registry.get("tab")
    config = system.parse(values(variant))
    torch.manual_seed(0)
    model = system.build(config)
    for tensor in model.state_dict().values():
        tensor.add_(0.2 * torch.randn(tensor.shape))
    manifest = Manifest(
        system="tab",
        variant=variant,
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=system.contract(config),
    )
    bundle = Bundle.create(root, manifest)
    with bundle.commit() as change:
        change.write("config.yaml", "data: {}\n")
        save_model(model, str(change.file(WEIGHTS)))
    return bundle


def spoken(contract: Contract, seed: int) -> Sample:
    """Random lengths that fit the short bucket, random content."""
    random = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for spec in contract.features:
        if spec.padding is None:
            inputs[spec.name] = random.standard_normal(spec.dims[1:], dtype=np.float32)
        else:
            inner = random.integers(4, spec.below, int(random.integers(1, SHORT[str(spec.dims[1])] - 2)))
            inputs[spec.name] = np.asarray([0, *inner, 2])
    return Sample(f"u{seed}", inputs, (f"u{seed}",), random.integers(0, 4, 1))


def text_tokenizer(folder: Path) -> TextTokenizer:
    """A byte-pair tokenizer of the sentences above."""
    train_byte_pairs(SENTENCES, 290, folder)
    return TextTokenizer.load(folder)


def speech_network() -> VqWav2vec:
    """A small tokenizer with the published strides."""
    layers = [(8, k, s) for k, s in ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2), (1, 1))]
    torch.manual_seed(1)
    model = VqWav2vec(VqConfig(layers=tuple(layers), entries=6)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def speech_tokenizer(folder: Path) -> Path:
    """The folder of a small speech tokenizer; two pairs are not in its dictionary."""
    pairs = [f"{i}-{j} 9" for i in range(6) for j in range(6)][:-2]
    folder.parent.mkdir(parents=True, exist_ok=True)
    dictionary = folder.parent / "dict.txt"
    dictionary.write_text("\n".join(pairs) + "\n")
    write_tokenizer(speech_network(), dictionary, folder, "correct")
    return folder


def sentence_encoder(folder: Path) -> Bert:
    """The folder of a small sentence encoder with the width of the context's vectors."""
    source = folder.parent / f"{folder.name}_bert"
    source.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz,.!?'", *(f"##{c}" for c in "abcdefghinoprstuwy")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters]
    pieces += [f"[unused{i}]" for i in range(110 - len(pieces))]
    (source / "vocab.txt").write_text("\n".join(pieces) + "\n")
    shape = {"vocab_size": len(pieces), "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 8, "max_position_embeddings": 20}
    (source / "config.json").write_text(json.dumps(shape))
    torch.manual_seed(5)
    bert = Bert(read_config(source)).eval()
    for tensor in bert.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape))
    own = bert.state_dict()
    save_file({a: own[o].clone() for a, o in renames(bert.config, "", "").items()}, source / "model.safetensors")
    export_encoder(source, folder)
    return bert
