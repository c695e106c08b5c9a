"""What an exporter is given and what it gives back, and the example inputs that exports are traced and proven on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mer_export.agreement.error import output_error
from mer_export.agreement.policy import PROOF
from mer_export.bucket import Bucket
from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.data.example_inputs import repeat
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.kept import Kept
from mer_export.task import Task

if TYPE_CHECKING:
    from torch import nn


class Graph(NamedTuple):
    """An ONNX file that was exported before: who wrote it, and the options that its variant has."""

    path: Path
    exporter: str
    options: dict[str, Any]


@dataclass(frozen=True)
class ExportJob:
    """One artefact to make.

    `example` holds every contract input, batched and padded to `lengths`; `reference` the model's outputs for it.
    `batch` 0 keeps the batch dim dynamic; `device` chooses the form in formats that have one per device. A `precision`
    other than fp32 is held against fp32 on `samples`, if any, in the metric of `task`.
    """

    model: nn.Module | None
    """None where an ONNX file is all that there is (`graph`)."""
    contract: Contract
    lengths: Bucket
    batch: int
    opset: int
    example: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]
    precision: str = "fp32"
    device: str = "cpu"
    task: Task | None = None
    samples: Sequence[Sample] = ()
    keep_fp32: Sequence[str] = ()
    """Modules that a reduced precision leaves in fp32, with their parts."""
    graph: Graph | None = None
    """The same model in fp32, where the bundle has it as ONNX already."""
    kept: Kept | None = None
    """Where an exporter may keep what it learns for the next export of this bundle."""

    def module(self) -> nn.Module:
        """The model with the contract's inputs by position, which is what exporters take."""
        from mer_export.layers.signature import by_position

        assert self.model is not None, "of a file nothing is traced"
        return by_position(self.model, self.contract.inputs)

    def tensors(self) -> tuple[Any, ...]:
        """The example as torch tensors in contract order; two items where the batch dim is to stay dynamic."""
        import torch

        return tuple(torch.from_numpy(a) for a in self.feed(self.batch or 2).values())

    def feed(self, size: int, start: int = 0) -> dict[str, np.ndarray]:
        """Inputs in contract order for `size` items of the example, from item `start` on."""
        return {
            s.name: repeat(self.example[s.name][start : start + size], size) if s.batched else self.example[s.name]
            for s in self.contract.inputs
        }

    @property
    def items(self) -> int:
        """How many items the example has."""
        return len(self.example[self.contract.features[0].name])

    def dynamic_shapes(self) -> dict[str, Any] | None:
        """The batch dim of every input by name, as torch.export wants it; None where the batch is fixed."""
        import torch

        if self.batch:
            return None
        batch = torch.export.Dim(BATCH, min=1)
        return {s.name: {0: batch} if s.batched else None for s in self.contract.inputs}


@dataclass(frozen=True)
class Exported:
    """What an exporter did: who wrote the file, and what a runtime or a reader of the bundle should know."""

    exporter: str
    options: dict[str, Any] = field(default_factory=dict)


def prove(job: ExportJob, outputs: Sequence[np.ndarray], who: str) -> None:
    """Refuses an export whose outputs for the example are not the model's; parity is finer.

    Raises:
        UsageError: with the output and its largest error.
    """
    for spec, found in zip(job.contract.outputs, outputs, strict=True):
        wanted = job.reference[spec.name]
        if found.shape != wanted.shape:
            raise UsageError(f"{who} gives {spec.name} of shape {found.shape}, the model {wanted.shape}: not exported")
        if problem := _difference(spec, wanted, found):
            raise UsageError(f"{who} differs from the model in {spec.name} by {problem}: it was not exported")


def _difference(spec: TensorSpec, wanted: np.ndarray, found: np.ndarray) -> str | None:
    """How far off an output is, in words; None where it is near enough. Of indices rounding may choose a few others."""
    if spec.below is not None:
        other = int((found != wanted).sum())
        return f"{other} of {wanted.size} indices" if other > PROOF.flip_share * wanted.size else None
    error = output_error(spec.name, [wanted], [found], PROOF.atol, PROOF.rtol)
    return None if error.agrees else error.size


def write_samples(job: ExportJob, path: Path) -> None:
    """Keeps the example and the model's outputs for it as one .npz."""
    with path.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **job.example, **job.reference)
