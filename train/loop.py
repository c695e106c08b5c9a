"""One training phase: optimiser, random streams, batches, one epoch at a time, on one or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mer_export.contract import Contract
from mer_export.data.samples import Sample, readable
from mer_export.errors import InputError, MerError, UsageError
from mer_export.layers.recurrent import in_one_piece
from mer_export.task import Task
from mer_export.weights import load_from_bundle
from train.batches import by_length, feed
from train.config import TrainConfig
from train.dropout import draw_fast
from train.padding import Kept, padding
from train.processes import Processes
from train.protocol import AuxiliaryPass, Protocol
from train.provenance import width_statistics
from train.recipe import protocol_class
from train.recurrent import pack_steps
from train.seeds import seed_everything
from train.updates import plateau_schedule
from train.warm_up import WarmUp, rates_kept

if TYPE_CHECKING:
    from accelerate import Accelerator


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
        model: Any,
        contract: Contract,
        samples: Sequence[Sample],
        accelerator: Accelerator,
        difficulty: Mapping[str, float] | None = None,
        measured: Iterable[Sequence[Sample]] = (),
        beside: Mapping[str, Sequence[Sample]] | None = None,
        start: str | None = None,
    ):
        """`settings` is the checked `protocol:` section; `model` is trained in place.

        `measured` are the splits that are evaluated, which may be kept on the device beside `samples`; `beside` those
        that the settings ask for; `start` is a bundle whose weights it starts from, those of encoders included.
        """
        self.config = config
        self.contract = contract
        self.samples = samples
        self.accelerator = accelerator
        self.model = model
        self.protocol: Protocol = protocol_class(config.system)(settings, difficulty)
        self.protocol.beside = beside or {}
        if config.group_by_length and (why := self.protocol.given_batches()):
            raise UsageError(f"group_by_length does not go with {why}: leave it out, or change that")
        self.processes = Processes(accelerator)
        if config.fast_dropout and accelerator.device.type != "cpu":
            raise UsageError(f"fast_dropout is of the CPU, this run is on {accelerator.device.type}: leave it out")
        self.dropout = draw_fast(model) if config.fast_dropout else None
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and not config.compile:
            pack_steps(model)
        module = self.protocol.prepare(model, samples, accelerator.device)
        if start is not None:
            # Over the encoders that the protocol has loaded.
            load_from_bundle(model, start)
        self.protocol.balance(config.balance, samples, model, accelerator.device)
        # Device and autocast alone: `processes` averages the gradients, in place of a wrapper around the module.
        module = accelerator.prepare_model(module, evaluation_mode=True)
        self.processes.start_alike(model.parameters())
        # Batches differ in length: made for one of them, the code would be made again for the next.
        self.module: Any = torch.compile(module, dynamic=True) if config.compile else module
        splits = [p for s in (samples, *(readable(s, contract) for s in measured)) for p in self.protocol.padded(s)]
        self.protocol.padding = padding(config.device_data, splits, contract, accelerator.device)
        self.updates = self.protocol.updates(model, config)
        self.optimizer = accelerator.prepare(self.updates.optimizer)
        self.updates.optimizer = self.optimizer
        self.schedule = plateau_schedule(config, self.optimizer)
        self.warm_up: WarmUp | None = None
        batches = self.protocol.batches_each(samples, config.batch, model.config, accelerator.num_processes)
        accumulation = self.updates.accumulation
        self.steps_per_epoch = accumulation.steps(batches)
        if config.warm_up is not None:
            self.warm_up = WarmUp(self.optimizer, accumulation.planned(config.epochs * batches), config.warm_up)
        self.average: AveragedModel | None = None
        if config.average is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
            in_one_piece(self.average)

    @property
    def kept(self) -> nn.Module:
        """The weights to evaluate and keep: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def epoch(self, number: int) -> dict[str, Any]:
        """Trains one epoch (from 0); returns its record: mean losses, dialogues used, seconds."""
        started = time.perf_counter()
        rank = self.processes.index
        seed = self.config.seed_of(number)
        seed_everything(seed)
        chosen = self.protocol.choose(self.samples, number)
        if self.config.group_by_length:
            chosen = by_length(chosen, self.config.batch, self.contract)
        if rank:
            seed_everything(seed + rank * 1_000_003)
        if self.dropout is not None:
            self.dropout.seed(seed + rank * 1_000_003)
        # Every process keeps batch norm statistics of its own; the frozen views need common ones.
        self.processes.start_alike(self.model.buffers())
        self.protocol.begin_epoch(self.model, number)
        self.module.train()
        with rates_kept(self.optimizer):
            others = self.protocol.auxiliary_pass(self.model, self._auxiliary(number))
        if self.warm_up is not None:
            self.warm_up.at(number * self.steps_per_epoch)
        groups = self.processes.own(self.protocol.batches(chosen, self.config.batch, self.model.config))
        batches = feed(groups, partial(self.protocol.collate, contract=self.contract), self.accelerator.device)
        history = [self._step(index, batch) for index, batch in enumerate(batches)]
        means = self._means(history, others)
        # The same numbers in every process, so that all of them stop, or none.
        if not all(map(math.isfinite, means.values())):
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
    def keeps_data(self) -> bool:
        """Whether the data stay on the device."""
        return isinstance(self.protocol.padding, Kept)

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _step(self, index: int, batch: Any) -> dict[str, Tensor]:
        self.updates.before(index)
        parts = self.protocol.step(self.module, self.protocol.vary(batch), self.accelerator.autocast)
        self.accelerator.backward(parts["total"])
        if self.updates.applies(index):
            self.processes.average_gradients(self.model.parameters())
            self.protocol.adjust_gradients(self.model)
            if self.config.clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        stepped = self.updates.after(index)
        if self.warm_up is not None:
            self.warm_up.next(stepped)
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
            backward=self._averaged_backward,
            share=self.processes.share,
        )

    def _averaged_backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        self.processes.average_gradients(self.model.parameters())

    def _means(self, history: Sequence[Mapping[str, Tensor]], others: Mapping[str, float]) -> dict[str, float]:
        """The mean of every loss over steps and processes, read from the device once."""
        names = list(history[0])
        own = torch.stack([torch.stack([step[name] for step in history]).mean().double() for name in names])
        every = torch.cat([own, torch.tensor(list(others.values()), dtype=own.dtype).to(own.device)])
        return dict(zip([*names, *others], self.processes.mean(every).tolist(), strict=True))
