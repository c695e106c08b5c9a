"""What the recipe of a TorchScript encoder asks for, as a module around it: from our inputs to features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_export.bucket import Bucket
from mer_export.data.example_inputs import random_inputs
from mer_export.encoders.file import SYSTEM
from mer_export.encoders.file.config import FileConfig, FilePicture
from mer_export.encoders.inputs import SoundInput, TextInput
from mer_export.encoders.log_mel import LogMel
from mer_export.encoders.transformers.network import pooled
from mer_export.errors import InputError
from mer_export.exporters.encoders.onnx_around import Arrays, Run
from mer_export.exporters.torchscript import quiet
from mer_export.layers.signature import by_position
from mer_export.untrusted import torchscript_archives


class Around(nn.Module):
    """A module of somebody else between our inputs, by name, and features; its own output if not `finished`."""

    def __init__(self, inner: Any, config: FileConfig, finished: bool = True):
        super().__init__()
        self.inner, self.config, self.finished = inner, config, finished

    def forward(self, **inputs: Tensor) -> Tensor:
        """Vectors (batch, width) or states (batch, steps, width) float32."""
        values, real, count = self._values(**inputs)
        told = {"values": values, "mask": real, "lengths": count, "zeros": torch.zeros_like(values)}
        found = self.inner(*(told[role] for role in self.config.takes.values()))
        if isinstance(found, tuple | list):
            found = found[int(self.config.output)]
        elif isinstance(found, dict):
            found = found[self.config.output]
        found = found.float()
        return self._features(found, inputs) if self.finished else found

    def _values(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The raw thing in the file's layout, 1 at its real places, and how many are real."""
        recipe = self.config.input
        if isinstance(recipe, TextInput):
            ids, count = inputs["input_ids"], inputs["tokens_len"]
            return ids, (torch.arange(ids.shape[1], device=ids.device) < count[:, None]).long(), count
        if isinstance(recipe, FilePicture):
            picture = inputs["picture"]
            picture = picture[:, [2, 1, 0]] if recipe.colours == "bgr" else picture
            picture = picture if recipe.layout == "nchw" else picture.permute(0, 2, 3, 1)
            return picture, picture, picture
        sound, samples = inputs["sound"], inputs["samples"]
        if recipe.form == "log_mel":
            rows = sound.reshape(sound.shape[0], -1, recipe.mels).transpose(1, 2)
            begins = torch.arange(rows.shape[2], device=sound.device) * LogMel.HOP
            return rows, (begins < samples).long(), (samples[:, 0] + (LogMel.HOP - 1)) // LogMel.HOP
        audio = functional.pad(sound.flatten(1), (0, max(0, recipe.field - recipe.hop)))
        real = (torch.arange(audio.shape[1], device=audio.device) < samples).long()
        return audio[:, None] if recipe.channel else audio, real, samples[:, 0]

    def _features(self, found: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        config, recipe = self.config, self.config.input
        if config.pools:
            return functional.normalize(found, dim=-1) if config.unit else found
        if found.dim() == 4:
            wide = isinstance(recipe, FilePicture) and recipe.layout == "nhwc"
            found = found.flatten(1, 2) if wide else found.flatten(2).transpose(1, 2)
        elif config.width_first:
            found = found.transpose(1, 2)
        place = torch.arange(found.shape[1], device=found.device)
        if isinstance(recipe, SoundInput):
            whole = 1 if recipe.form == "log_mel" else recipe.field
            mask = place * recipe.hop + whole <= inputs["samples"]
        elif isinstance(recipe, TextInput):
            mask = place < inputs["tokens_len"][:, None]
        else:
            mask = torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
        return pooled(found, mask, config)


class TorchScriptFile:
    """A TorchScript archive that a table admits, or whose maker the user knows."""

    def __init__(self, path: Path, trust: bool = False):
        """Loads an archive; with `trust` one that does more than our exports do.

        Raises:
            UntrustedError: an archive that does more.
            InputError: no archive that PyTorch loads.
        """
        if not trust:
            torchscript_archives.check(path)
        try:
            with quiet():
                self.module = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise InputError(f"{path} is not TorchScript: {str(error).strip().splitlines()[0]}") from None
        self.path = path

        self.names = [a.name for a in self.module.forward.schema.arguments[1:]]
        self.outputs: list[str] = []

    def fixed(self, name: str) -> Sequence[int | None]:
        """An archive says nothing of sizes."""
        return ()

    def try_out(self, config: FileConfig, bucket: Bucket, batch: int, arrays: Arrays) -> np.ndarray:
        """What the module itself gives."""
        return _run(Around(self.module, config, finished=False), arrays)

    def write(
        self, config: FileConfig, bucket: Bucket, batch: int, shape: Sequence[int], path: Path, beside: Path | None
    ) -> Run:
        """Writes the module with what is put around it, traced at the bucket's lengths; gives what runs it."""
        contract = SYSTEM.contract(config)
        arrays = random_inputs(contract, bucket, batch or 2)
        inputs = tuple(torch.from_numpy(arrays[s.name]) for s in contract.inputs)
        with quiet(), torch.no_grad():
            around = by_position(Around(self.module, config).eval(), contract.inputs)
            traced = torch.jit.freeze(torch.jit.trace(around, inputs, check_trace=False).eval())
            with path.open("wb") as stream:
                torch.jit.save(traced, stream)
        names = [s.name for s in contract.inputs]
        return lambda given: _run(lambda **tensors: traced(*(tensors[n] for n in names)), given)


def _run(module: Callable[..., Tensor], arrays: Arrays) -> np.ndarray:
    with quiet(), torch.no_grad():
        found: np.ndarray = module(**{n: torch.from_numpy(a) for n, a in arrays.items()}).numpy()
    return found
