"""One training phase: optimiser, random streams, batches, one epoch at a time, on one or several processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import InputError, MerError, NotAvailableError, UsageError
from mer_export.install import not_installed
from mer_export.task import Task
from train.config import TrainConfig
from train.protocol import AuxiliaryPass, Protocol
from train.provenance import width_statistics
from train.recipe import protocol_class
from train.seeds import seed_everything
from train.updates import plateau_schedule
from train.warm_up import WarmUp

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device, autocast and processes; raises NotAvailableError for a missing package or GPU."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        raise NotAvailableError(not_installed("accelerate", "train")) from None
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise NotAvailableError("no CUDA device is available: pass --device cpu")
    on_gpu = gpu and config.device != "cpu"
    bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())
    # accelerate remembers the precision of the first run in a process; each run here has its own.
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(cpu=not on_gpu, mixed_precision="bf16" if bf16 else "no")


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Runs a block with so many CPU threads; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_statistics(model: nn.Module, samples: Sequence[Sample]) -> None:
    """Gives the model's input standardisation the statistics of the training split.

    Raises:
        UsageError: the split has none of a modality.
        InputError: its features have another width.
    """
    for name, layer in getattr(model, "standardise", {}).items():
        found = width_statistics(samples, name)
        if found is None:
            raise UsageError(f"model.standardise names {name}, the training split has no {name}: take it out")
        mean, std = found
        if mean.shape != layer.mean.shape:
            wide, made = len(mean), len(layer.mean)
            raise InputError(f"{name} is {wide} wide, the model was made for {made}: set model.{name}_dim={wide}")
        layer.mean.copy_(torch.from_numpy(mean))
        layer.std.copy_(torch.from_numpy(std))


class Phase:
    """A model in training on fixed samples."""

    def __init__(
        self,
        config: TrainConfig,
        settings: Any,
        model: nn.Module,
        contract: Contract,
        samples: Sequence[Sample],
        accelerator: Accelerator,
        difficulty: Mapping[str, float] | None = None,
    ):
        """`settings` is the checked `protocol:` section; `model` is trained in place."""
        self.config = config
        self.contract = contract
        self.samples = samples
        self.accelerator = accelerator
        self.model = model
        self.protocol: Protocol = protocol_class(config.system)(settings, difficulty)
        module = self.protocol.prepare(model, samples, accelerator.device)
        self.updates = self.protocol.updates(model, config)
        self.module, self.optimizer = accelerator.prepare(module, self.updates.optimizer)
        self.updates.optimizer = self.optimizer
        self.schedule = plateau_schedule(config, self.optimizer)
        self.warm_up: WarmUp | None = None
        batches = -(-len(self.protocol.batches(samples, config.batch)) // accelerator.num_processes)
        self.steps_per_epoch = batches // self.updates.every
        if config.warm_up is not None:
            steps = config.epochs * batches / self.updates.every
            self.warm_up = WarmUp(self.optimizer, steps, config.warm_up)
        self.average: AveragedModel | None = None
        if config.average is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))

    @property
    def kept(self) -> nn.Module:
        """The weights to evaluate and keep: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def epoch(self, number: int) -> dict[str, Any]:
        """Trains one epoch (from 0); returns its record: mean losses, dialogues used, seconds."""
        from accelerate.utils import broadcast

        started = time.perf_counter()
        rank = self.accelerator.process_index
        seed = self.config.seed_of(number)
        seed_everything(seed)
        chosen = self.protocol.choose(self.samples, number)
        if rank:
            seed_everything(seed + rank * 1_000_003)
        for buffer in self.model.buffers():
            # Every process keeps batch norm statistics of its own; the frozen views need common ones.
            buffer.copy_(broadcast(buffer))
        self.protocol.begin_epoch(self.model, number)
        self.module.train()
        others = self.protocol.auxiliary_pass(self.model, self._auxiliary(number))
        if self.warm_up is not None:
            self.warm_up.at(number * self.steps_per_epoch)
        history = [self._step(index, group) for index, group in enumerate(self._own_batches(chosen))]
        means = {name: float(torch.stack([h[name] for h in history]).mean()) for name in history[0]} | others
        if not all(torch.isfinite(torch.tensor(list(means.values())))):
            raise MerError(f"training diverged in epoch {number + 1}, losses are {means}: lower lr or set clip")
        seconds = round(time.perf_counter() - started, 3)
        return {"epoch": number + 1, "train": means, "dialogues": len(chosen), "seconds": seconds}

    def evaluate(self, samples: Sequence[Sample], task: Task) -> dict[str, float]:
        """Metrics with the semantics that are being trained."""
        return self.protocol.evaluate(self.kept, samples, self.contract, task)

    def end_epoch(self, record: Mapping[str, Any], passed: bool = False) -> None:
        """Steps the schedule on an epoch's record; after a resume, on those of all earlier epochs.

        `passed` says that the epoch was over before the one that the loaded tensors come from.
        """
        self.protocol.end_epoch(record, self.model, self.optimizer, passed)
        if self.schedule is not None and self.config.plateau is not None:
            self.schedule.step(record["splits"][self.config.plateau.split]["loss"])

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _step(self, index: int, group: list[Sample]) -> dict[str, torch.Tensor]:
        batch = self.protocol.make_batch(group, self.contract, self.accelerator.device)
        self.updates.before(index)
        parts = self.protocol.step(self.module, batch, self.accelerator.autocast)
        self.accelerator.backward(parts["total"])
        if self.config.clip is not None and self.updates.applies(index):
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        stepped = self.updates.after(index)
        if self.warm_up is not None and stepped:
            self.warm_up.next()
        if self.average is not None and stepped:
            self.average.update_parameters(self.model)
        return {name: part.detach() for name, part in parts.items()}

    def _auxiliary(self, number: int) -> AuxiliaryPass:
        return AuxiliaryPass(
            epoch=number,
            epochs=self.config.epochs,
            optimizer=self.optimizer,
            device=self.accelerator.device,
            autocast=self.accelerator.autocast,
            backward=self.accelerator.backward,
        )

    def _own_batches(self, chosen: Sequence[Sample]) -> list[list[Sample]]:
        """This process's share; every process gets as many batches, the first ones repeat where they do not divide."""
        batches = self.protocol.batches(chosen, self.config.batch)
        processes = self.accelerator.num_processes
        missing = -len(batches) % processes
        batches += [batches[i % len(batches)] for i in range(missing)]
        return batches[self.accelerator.process_index :: processes]
