"""What tests/test_train_processes.py starts with torchrun: `python two_processes.py DATA OUT`, prints nothing.

Each process writes OUT/<rank>.json: by system the digest of the weights of a whole run and of an interrupted one,
what divergence in the second process alone ended with, and that of a run whose first process measures for longer than
processes wait for each other unless they are told to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.distributed import distributed_c10d

from mer_export.data.samples import Sample
from mer_export.errors import MerError
from train.config import load_preset
from train.fit import Run, fit
from train.loop import Phase
from train.systems.cmerc.protocol import CmercProtocol
from train.systems.tab.protocol import TabProtocol

DATASETS = {
    "cmerc": "meld",
    "emt": "mosi",
    "tfr_net": "mosi",
    "mult": "mosi",
    "facialmmt": "meld",
    "mtee": "iemocap",
    "tab": "iemocap",
}
RUN = ("epochs=2", "device=cpu", "precision=fp32", "batch=4")
SETS = {
    "cmerc": ["protocol.curriculum.difficulty=measure", "protocol.curriculum.measure_epochs=1"],
    "emt": ["protocol.accumulate=2"],
    "mult": ["protocol.accumulate=2"],
    "tfr_net": ["protocol.accumulate=2", "model.modalities=[text, audio]"],
}
"""Gradients of several batches add up before they are averaged; most of TFR-Net's time would go to 500 frames."""

BATCHES = {"cmerc": 1, "emt": 3, "tfr_net": 3, "mult": 3, "facialmmt": 11, "mtee": 2, "tab": 7}
"""A size that divides the training split of ITEMS into pairs of batches."""
ITEMS = {"mtee": 32, "tab": 20, "facialmmt": 24, "mult": 20}
BY_ITEM = {
    "cmerc": ["model.norm=LN", "protocol.calibrate=false", "protocol.contrast=false", "protocol.curriculum=null"],
    "emt": ["protocol.missing=0"],
    "tfr_net": ["protocol.missing=0", "model.generator=none", "model.fuse_generated=false"],
}
"""What makes the loss of a batch the mean over its items: no contrast, nothing masked; see `mean_over_items`."""
SHORT = timedelta(seconds=1)
"""How long processes wait that nobody told how long."""

Found = dict[str, list[str]]


class Stop(Exception):
    pass


def preset(system: str, *sets: str):
    return load_preset(f"synthetic/{system}_{DATASETS[system]}", [*RUN, *SETS.get(system, []), *sets])


def without_chance(system: str, batch: int):
    """A run whose loss is the mean over items, and in which their order alone depends on random numbers."""
    config = preset(system, f"batch={batch}")
    dropout = [f"model.{name}=0" for name in paths(config.model) if "dropout" in name]
    return preset(system, f"batch={batch}", *dropout, *BY_ITEM.get(system, []))


def alike_in_pairs(samples: Sequence[Sample]) -> list[Sample]:
    """Dialogues in pairs of as many utterances: the mean over those of both is then that of their means."""
    by_size: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_size[len(sample.units)].append(sample)
    return [s for found in by_size.values() for s in found[: len(found) // 2 * 2]]


def fixed_norm(self: nn.BatchNorm1d, x: torch.Tensor) -> torch.Tensor:
    """Batch norm that the batch has no say in."""
    return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


@contextlib.contextmanager
def mean_over_items() -> Iterator[None]:
    """What no setting of `BY_ITEM` reaches."""
    with (
        mock.patch.object(CmercProtocol, "choose", lambda self, samples, epoch: alike_in_pairs(samples)),
        mock.patch.object(nn.BatchNorm1d, "forward", fixed_norm),
    ):
        yield


def paths(section: dict) -> list[str]:
    """Every setting of a section by its dotted name."""
    inner = {n: paths(v) if isinstance(v, dict) else [""] for n, v in section.items()}
    return [f"{n}.{rest}".removesuffix(".") for n, found in inner.items() for rest in found]


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        found.update(parameter.detach().numpy().tobytes())
    return found.hexdigest()


def trained(config, data: Path, out: Path) -> str:
    """The digest of this process's own weights after the last epoch."""
    seen = []
    finish = Run.finish

    def and_look(self: Run) -> None:
        seen.append(digest(self.phase.model))
        finish(self)

    with mock.patch.object(Run, "finish", and_look):
        fit(config, data, out, quiet=True)
    return seen[0]


def stopped(config, data: Path, out: Path, after: int = 1) -> None:
    """Trains so many epochs and is interrupted in the next one."""
    epoch = Phase.epoch

    def only_the_first(self: Phase, number: int) -> dict:
        if number == after:
            raise Stop
        return epoch(self, number)

    with mock.patch.object(Phase, "epoch", only_the_first):
        try:
            fit(config, data, out, quiet=True)
        except Stop:
            return
    raise AssertionError("the run was not interrupted")


def diverged(config, data: Path, out: Path, rank: int) -> str:
    """What a loss that is no number, of the second process alone, ends with."""
    step = TabProtocol.step

    def spoilt(self: TabProtocol, *given) -> dict:
        return {n: v * torch.nan if rank else v for n, v in step(self, *given).items()}

    with mock.patch.object(TabProtocol, "step", spoilt):
        try:
            fit(config, data, out, quiet=True)
        except MerError as error:
            return str(error)
    return "trained"


def patient(config, data: Path, out: Path) -> str:
    """As `trained`, but measuring takes longer than processes wait for each other by themselves."""
    evaluate = Phase.evaluate

    waits = iter([2 * SHORT.total_seconds()])

    def slow(self: Phase, *given) -> dict:
        time.sleep(next(waits, 0))
        return evaluate(self, *given)

    with (
        mock.patch.object(Phase, "evaluate", slow),
        mock.patch.object(distributed_c10d, "_get_default_timeout", return_value=SHORT),
    ):
        return trained(config, data, out)


def main(data: Path, out: Path) -> None:
    rank = int(os.environ["RANK"])
    found: Found = {}
    # First: how long processes wait is settled when they meet.
    found["patient"] = [patient(preset("mtee", "epochs=1"), data / "mtee", out / "patient")]
    for system in DATASETS:
        config, files = preset(system), data / system
        whole = trained(config, files, out / f"{system}-whole")
        stopped(config, files, out / f"{system}-cut")
        found[system] = [whole, trained(config, files, out / f"{system}-cut")]
    with mean_over_items():
        for system, batch in BATCHES.items():
            fit(without_chance(system, batch), data / system, out / f"{system}-halves", quiet=True)
    found["diverged"] = [diverged(preset("tab"), data / "tab", out / "diverged", rank)]
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
