"""What tests/test_train_processes.py starts with torchrun: `python two_processes.py DATA OUT`, prints nothing.

Each process writes OUT/<rank>.json: by system the digest of the weights of a whole run and of an interrupted one, and
what divergence in the second process alone ended with.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from mer_export.errors import MerError
from train.config import load_preset
from train.fit import Run, fit
from train.loop import Phase

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
    "emt": ["protocol.accumulate=2"],
    "mult": ["protocol.accumulate=2"],
    "tfr_net": ["protocol.accumulate=2", "model.modalities=[text, audio]"],
}
"""Gradients of several batches add up before they are averaged; most of TFR-Net's time would go to 500 frames."""

BATCHES = {"mtee": 2, "tab": 7, "facialmmt": 11, "mult": 3}
"""Of systems whose loss is a mean over items: a size that divides the training split of ITEMS into pairs of batches."""
ITEMS = {"mtee": 32, "tab": 20, "facialmmt": 24, "mult": 20}

Found = dict[str, list[str]]


class Stop(Exception):
    pass


def preset(system: str, *sets: str):
    return load_preset(f"synthetic/{system}_{DATASETS[system]}", [*RUN, *SETS.get(system, []), *sets])


def without_chance(system: str, batch: int):
    """A run in which nothing depends on random numbers but the order of the items."""
    config = preset(system, f"batch={batch}")
    dropout = [f"model.{name}=0" for name in paths(config.model) if "dropout" in name]
    return preset(system, f"batch={batch}", *dropout)


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


def stopped(config, data: Path, out: Path) -> None:
    """Trains the first epoch and is interrupted in the second."""
    epoch = Phase.epoch

    def only_the_first(self: Phase, number: int) -> dict:
        if number:
            raise Stop
        return epoch(self, number)

    with mock.patch.object(Phase, "epoch", only_the_first):
        try:
            fit(config, data, out, quiet=True)
        except Stop:
            return
    raise AssertionError("the run was not interrupted")


def diverged(config, data: Path, out: Path, rank: int) -> str:
    """What a loss that is no number, of the second process alone, ends with; applied gradients stay finite."""
    means = Phase._means

    def spoilt(self: Phase, history: list, others: dict) -> dict:
        if rank:
            history = [{n: v * torch.nan for n, v in step.items()} for step in history]
        return means(self, history, others)

    with mock.patch.object(Phase, "_means", spoilt):
        try:
            fit(config, data, out, quiet=True)
        except MerError as error:
            return str(error)
    return "trained"


def main(data: Path, out: Path) -> None:
    rank = int(os.environ["RANK"])
    found: Found = {}
    for system in DATASETS:
        config, files = preset(system), data / system
        whole = trained(config, files, out / f"{system}-whole")
        stopped(config, files, out / f"{system}-cut")
        found[system] = [whole, trained(config, files, out / f"{system}-cut")]
    for system, batch in BATCHES.items():
        fit(without_chance(system, batch), data / system, out / f"{system}-halves", quiet=True)
    found["diverged"] = [diverged(preset("tab"), data / "tab", out / "diverged", rank)]
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
