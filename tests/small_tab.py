"""Tiny bundles of tab with random weights, random utterances, and files for its tokenizers."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from argparse import Namespace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from conftest import Once
from safetensors.torch import save_file, save_model

from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.data.tokens.byte_pair_training import train_byte_pairs
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.encoders.config import Provenance
from mer_export.encoders.vq_wav2vec.config import VqConfig, encoder_config
from mer_export.encoders.vq_wav2vec.network import WEIGHT_MAP, VqWav2vec
from mer_export.exporters import export_variant
from mer_export.exporters.encoders.make import make
from mer_export.layers.bert.folder import read_config
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.weights import renames
from mer_export.progress import SILENT

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


FORMATS: dict[str, tuple[str, ...]] = {"fusion": ("torchscript", "exported_program", "onnx"), "audio_tab": ()}
"""The other variants go to ONNX alone, to keep the suite short; only that of fusion has both buckets."""


def export_tab(once: Once, variant: str) -> Bundle:
    """The bundle of a variant with its files in `FORMATS`; read only."""

    def made(root: Path) -> Bundle:
        bundle = make_tab(root, variant)
        example = [spoken(bundle.manifest.contract, seed) for seed in range(3)]
        short, *longer = bundle.manifest.contract.buckets
        for name in FORMATS.get(variant, ("onnx",)):
            for lengths in (short, *longer) if (variant, name) == ("fusion", "onnx") else (short,):
                export_variant(bundle, name, lengths, example=example)
        return bundle

    return once(f"tab {variant}", made)


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
    """A small tokenizer with the published strides, of utterances of 2 seconds at most."""
    layers = [(8, k, s) for k, s in ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2), (1, 1))]
    torch.manual_seed(1)
    shape = VqConfig(layers=tuple(layers), entries=6)
    model = VqWav2vec(encoder_config(shape, 16000, 2.0, Provenance(name="small"), buckets=(200,))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def speech_checkpoint(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of the small tokenizer as fairseq writes it, and a dictionary without two of its pairs."""
    model = speech_network()
    folder.mkdir(parents=True, exist_ok=True)
    names = {ours: theirs for theirs, ours in WEIGHT_MAP.renames(SimpleNamespace(network=model.config)).items()}
    arguments = {"conv_feature_layers": str([list(x) for x in model.config.layers]), "activation": "gelu"}
    arguments |= {"vq_vars": 6, "vq_groups": 2, "combine_groups": True, "vq_dim": 0, "vq_type": "kmeans"}
    state = {names[n]: t.clone() for n, t in model.state_dict().items()}
    torch.save({"args": Namespace(**arguments), "model": state}, folder / "kmeans.pt")
    pairs = [f"{i}-{j} 9" for i in range(6) for j in range(6)][:-2]
    (folder / "dict.txt").write_text("\n".join(pairs) + "\n")
    return folder / "kmeans.pt", folder / "dict.txt"


def speech_tokenizer(folder: Path) -> Path:
    """The folder of a small speech tokenizer, exported once in a process."""
    return Path(shutil.copytree(_speech_tokenizer(), folder))


@cache
def _speech_tokenizer() -> Path:
    folder = _kept()
    checkpoint, dictionary = speech_checkpoint(folder / "source")
    settings = {"dictionary": dictionary, "window": 2.0, "length": [200]}
    make(str(checkpoint), folder / "made", settings, False, SILENT)
    return folder / "made"


def _kept() -> Path:
    """A folder that lives as long as the process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def bert_folder(folder: Path) -> Bert:
    """A BERT with the width of the context's vectors, as the transformers package saves one."""
    folder.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz,.!?'", *(f"##{c}" for c in "abcdefghinoprstuwy")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters]
    pieces += [f"[unused{i}]" for i in range(110 - len(pieces))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    shape = {"vocab_size": len(pieces), "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 8, "max_position_embeddings": 20, "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(shape))
    torch.manual_seed(5)
    bert = Bert(read_config(folder)).eval()
    for tensor in bert.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape))
    own = bert.state_dict()
    save_file({a: own[o].clone() for a, o in renames(bert.config, "", "").items()}, folder / "model.safetensors")
    return bert


def sentence_encoder(folder: Path) -> Bert:
    """The folder of a small sentence encoder, exported once in a process."""
    made, bert = _sentence_encoder()
    shutil.copytree(made, folder)
    return bert


@cache
def _sentence_encoder() -> tuple[Path, Bert]:
    folder = _kept()
    bert = bert_folder(folder / "source")
    make(str(folder / "source"), folder / "made", {"pooling": "first", "length": [20]}, False, SILENT)
    return folder / "made", bert
