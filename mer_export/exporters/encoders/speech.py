"""A speech tokenizer as a folder that runs without PyTorch: vq-wav2vec for any length, one utterance at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_export.agreement.policy import PROOF
from mer_export.bundle import sha256
from mer_export.checkpoints import read_checkpoint, usual_state
from mer_export.data.tokens.speech_dictionary import SpeechDictionary
from mer_export.encoders.speech import CONFIG, DICTIONARY, MODEL, RATES, TRACED, WEIGHTS, Rate
from mer_export.encoders.vq_wav2vec.config import from_arguments
from mer_export.errors import ParityError, UnsupportedError, UsageError
from mer_export.exporters.onnx import quiet as quiet_onnx
from mer_export.exporters.precision_gate import open_file
from mer_export.exporters.torchscript import quiet
from mer_export.weights import import_weights

if TYPE_CHECKING:
    from mer_export.encoders.vq_wav2vec.network import VqWav2vec

OPSET = 20
PROVEN = (1, 3, 17)
"""Frames of the waveforms that the files are proven on, besides one of a second."""


def import_tokenizer(checkpoint: Path, dictionary: Path, out: Path, rate: Rate, force: bool = False) -> list[Path]:
    """Writes the folder from a fairseq checkpoint of vq-wav2vec (`args` and `model`) and a dict.txt.

    Raises:
        UsageError: the folder exists, or the checkpoint is of another form.
        UnsupportedError: a quantiser of another kind, or residual connections, which exist for one length only.
        ParityError: an exported file gives other tokens.
    """
    from mer_export.encoders.vq_wav2vec.network import WEIGHT_MAP, VqWav2vec

    found = read_checkpoint(checkpoint)
    config = from_arguments(found.arguments)
    model = VqWav2vec(config).eval()
    import_weights(model, usual_state(found), WEIGHT_MAP, config)
    return write_tokenizer(model, dictionary, out, rate, force, {"file": checkpoint.name, "sha256": sha256(checkpoint)})


def write_tokenizer(
    model: VqWav2vec, dictionary: Path, out: Path, rate: Rate, force: bool = False, source: dict[str, str] | None = None
) -> list[Path]:
    """Writes the folder of a network: weights, ONNX and TorchScript for any length, dictionary, shape and rate."""
    from safetensors.torch import save_model

    if rate not in RATES:
        raise UsageError(f"no sample rate {rate!r}, there are {list(RATES)}")
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    SpeechDictionary.load(dictionary)
    out.mkdir(parents=True, exist_ok=True)
    config = model.config
    export_onnx(model, out / MODEL)
    export_torchscript(model, out / TRACED)
    save_model(model, str(out / WEIGHTS))
    shutil.copyfile(dictionary, out / DICTIONARY)
    content = {"model": config.model_dump(mode="json"), "sample_rate": RATES[rate], "source": source or {}}
    (out / CONFIG).write_text(json.dumps(content, indent=1))
    return [out / name for name in (CONFIG, DICTIONARY, MODEL, TRACED, WEIGHTS)]


def export_onnx(model: VqWav2vec, path: Path) -> None:
    """One file whose length is free, proven in ONNX Runtime; raises UnsupportedError and ParityError as above."""
    import torch

    config = model.config
    if config.skip:
        raise UnsupportedError(
            "a tokenizer with residual connections cuts its input by the length: it has no ONNX file"
        )
    length = torch.export.Dim("samples", min=config.shortest)
    with torch.no_grad(), quiet_onnx():
        program = torch.onnx.export(
            model,
            (torch.zeros(1, 4 * config.shortest),),
            input_names=["audio"],
            output_names=["indices"],
            opset_version=OPSET,
            dynamic_shapes={"audio": {1: length}},
            dynamo=True,
            verbose=False,
            optimize=True,
        )
    assert program is not None
    program.save(str(path))
    session = open_file(path)
    prove(model, lambda audio: session.run(None, {"audio": audio})[0], "the ONNX file")


def export_torchscript(model: VqWav2vec, path: Path) -> None:
    """A traced module whose length is free."""
    import torch

    with quiet(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(model, torch.zeros(1, 4 * model.config.shortest), check_trace=False))
        with path.open("wb") as stream:
            torch.jit.save(traced, stream)
        prove(model, lambda audio: traced(torch.from_numpy(audio)).numpy(), "the TorchScript module")


def prove(model: VqWav2vec, run: Callable[[np.ndarray], np.ndarray], who: str) -> None:
    """Holds tokens against the network's for several lengths."""
    import torch

    hop = int(np.prod([stride for _, _, stride in model.config.layers]))
    lengths = [model.config.shortest + (n - 1) * hop for n in PROVEN] + [max(16000, model.config.shortest)]
    draw = np.random.default_rng(0)
    for samples in lengths:
        audio = 0.1 * draw.standard_normal((1, samples), dtype=np.float32)
        with torch.no_grad():
            wanted = model(torch.from_numpy(audio)).numpy()
        found = run(audio)
        if found.shape != wanted.shape:
            raise ParityError(f"{who} gives {found.shape} indices of {samples} samples, the model {wanted.shape}")
        other = int((found != wanted).sum())
        if other > PROOF.flip_share * wanted.size:
            raise ParityError(f"{who} gives {other} other indices of {wanted.size} for {samples} samples")
