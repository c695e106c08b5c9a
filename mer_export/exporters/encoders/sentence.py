"""A BERT folder as a sentence encoder that runs without PyTorch, for sentences of any length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.agreement.error import output_error
from mer_export.agreement.policy import PROOF
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer_json import text_files
from mer_export.encoders.sentence import CONFIG, MODEL
from mer_export.errors import ParityError, UnsupportedError, UsageError
from mer_export.exporters.onnx import quiet
from mer_export.exporters.precision_gate import open_file
from mer_export.layers.bert.folder import read_config
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.untrusted.json_files import read_json_object

Pooling = Literal["first", "mean"]
POOLING_CONFIG = Path("1_Pooling", "config.json")
"""Where `sentence-transformers` says how it pools."""
POOLING_MODES: dict[str, Pooling] = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean"}
OPSET = 20
PROVEN = (2, 3, 11)
"""Token counts that the file is proven on, besides the longest."""


class Sentence(nn.Module):
    """One sentence in, its vector out: the first state, or the mean of all brought to unit length (MiniLM)."""

    def __init__(self, bert: Bert, pooling: Pooling):
        super().__init__()
        self.bert, self.pooling = bert, pooling

    def forward(self, input_ids: Int[Tensor, "one tokens"]) -> Float[Tensor, "one hidden"]:
        lengths = torch.ones_like(input_ids).sum(dim=1)
        if self.pooling == "first":
            return self.bert.first(input_ids, None, lengths)
        return functional.normalize(self.bert(input_ids, None, lengths).mean(dim=1), dim=-1)


def export_encoder(source: Path, out: Path, pooling: Pooling = "first", force: bool = False) -> list[Path]:
    """Writes the folder from one of the `transformers` package (config.json, weights, files of its tokenizer).

    Raises:
        UsageError: the folder exists, weights do not fit, or the source says that it pools in another way.
        InputError: the source is damaged.
        UnsupportedError: the source is an encoder that the network cannot be, or pools as this does not.
        NotAvailableError: `tokenizers` is missing.
        ParityError: the file gives other vectors.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    _check_pooling(source, pooling)
    config = read_config(source)
    bert = Bert(config).eval()
    load_pretrained(bert, source)
    TextTokenizer.load(source)
    tokenizer = text_files(source)
    out.mkdir(parents=True, exist_ok=True)
    model = Sentence(bert, pooling).eval()
    tokens = torch.export.Dim("tokens", min=2, max=config.longest)
    example = torch.full((1, min(8, config.longest)), config.first_token)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["input_ids"],
            output_names=["vector"],
            opset_version=OPSET,
            dynamic_shapes={"input_ids": {1: tokens}},
            dynamo=True,
            verbose=False,
            optimize=True,
        )
    assert program is not None
    program.save(str(out / MODEL))
    _prove(model, out / MODEL, config.longest, config.vocabulary)
    for name, file in tokenizer.items():
        shutil.copyfile(file, out / name)
    (out / CONFIG).write_text(json.dumps({"longest": config.longest, "width": config.hidden, "pooling": pooling}))
    return [out / name for name in (CONFIG, MODEL, *tokenizer)]


def _check_pooling(source: Path, pooling: Pooling) -> None:
    path = source / POOLING_CONFIG
    if not path.is_file():
        return
    modes = [n for n, on in read_json_object(path).items() if n.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise UnsupportedError(f"{path} pools by {modes}, a sentence encoder by one of {list(POOLING_MODES)}")
    if POOLING_MODES[modes[0]] != pooling:
        found = POOLING_MODES[modes[0]]
        raise UsageError(f"pooling is {pooling}, {path} says {found}: pass --pooling {found}")


def _prove(model: Sentence, path: Path, longest: int, vocabulary: int) -> None:
    session, draw = open_file(path), np.random.default_rng(0)
    for count in (*(n for n in PROVEN if n < longest), longest):
        ids = draw.integers(0, vocabulary, (1, count))
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids)).numpy()
        found = session.run(None, {"input_ids": ids})[0]
        error = output_error("vector", [wanted], [found], PROOF.atol, PROOF.rtol)
        if not error.agrees:
            raise ParityError(f"the ONNX file differs from the encoder by {error.size} at {count} tokens")
