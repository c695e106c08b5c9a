"""Where the time of a training step goes: waiting for its batch, forward, backward, the rest (optimiser, clipping)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.gpu.rows import ALL, Results, Row
from benchmarks.gpu.training import RUNS, synthetic_data
from mer_export import registry
from train import loop
from train.batches import AHEAD, feed
from train.config import load_preset
from train.devices import computing
from train.prepared import prepare

WAYS = {
    "batches made when asked for": ("never", 0),
    "batches made ahead": ("never", AHEAD),
    "batches cut from data on the device": ("always", AHEAD),
}
"""The setting `device_data`, and how many batches are made ahead of the steps."""
EPOCHS = 3
"""The first one is not counted."""


def shares(results: Results, kept: Path, systems: Sequence[str]) -> None:
    """Whole epochs of systems on synthetic data, their batches made in each of the ways."""
    for system in systems:
        about = {"part": "training feed", "network": system}
        missing = {name: way for name, way in WAYS.items() if not results.has(**about, way=name)}
        if not results.in_time or not missing:
            continue
        with results.piece(**about, way=ALL):
            data = synthetic_data(kept, system)
            tokenizer = [f"data.tokenizer={data / 'tokenizer'}"] * (data / "tokenizer").is_dir()
            for name, (kept_there, depth) in missing.items():
                sets = [f"device={results.device}", "precision=fp32", f"device_data={kept_there}", *tokenizer]
                results.add([_epochs(load_preset(RUNS[system][1], sets), data, depth)], **about, way=name)


def _epochs(config: Any, data: Path, depth: int) -> Row:
    prepared = prepare(config, data, draws_weights=True)
    model = registry.get(config.system).build(prepared.model_config)
    loop.set_statistics(model, prepared.unchanged)
    with computing(config, prepared.accelerator.device):
        phase = loop.Phase(
            config, prepared.settings, model, prepared.contract, prepared.samples, prepared.accelerator, None
        )
        clock = Clock(prepared.accelerator.device.type)
        with (
            patch.object(loop, "feed", lambda *a: clock.each("waiting", feed(*a, depth=depth))),
            patch.object(phase.protocol, "step", clock.timed("forward", phase.protocol.step)),
            patch.object(prepared.accelerator, "backward", clock.timed("backward", prepared.accelerator.backward)),
        ):
            for epoch in range(EPOCHS):
                if epoch == 1:
                    clock.spent, clock.steps, began = {}, 0, time.perf_counter()
                phase.epoch(epoch)
            whole = time.perf_counter() - began
    found: Row = {"step_ms": 1000 * whole / clock.steps}
    found |= {f"{name}_share": spent / whole for name, spent in clock.spent.items()}
    return found | {"outside_share": 1 - (clock.spent["forward"] + clock.spent["backward"]) / whole}


class Clock:
    """Seconds by name. On a GPU each piece begins when all before it is done, and is waited for, which it would not be
    otherwise."""

    def __init__(self, device: str):
        self._device = device
        self.spent: dict[str, float] = {}
        self.steps = 0

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return partial(self._call, name, call)

    def each(self, name: str, made: Iterator[Any]) -> Iterator[Any]:
        """What an iterator gives; the time until it does counts."""
        done = object()
        while (one := self._call(name, next, made, done)) is not done:
            self.steps += 1
            yield one

    def _call(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self._wait()
        began = time.perf_counter()
        found = call(*arguments, **named)
        self._wait()
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began
        return found

    def _wait(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
