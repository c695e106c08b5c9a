"""The authors' training loops in eager PyTorch, on the items, in the batches and with the losses of a phase of ours.

Written again from what is known of the public code: items become tensors and are padded when a step asks for them,
networks in their form (`forms`), PyTorch's optimisers as they call them, a loss that is read after every step. What the
losses are made of is this project's, and so is every layer whose form is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.forms import in_their_form
from mer_export.contract import Contract, Lengths
from mer_export.data.collate import collate, longest
from mer_export.data.samples import Sample
from train.batches import Batch
from train.loop import Phase
from train.padding import FromSamples, Inputs
from train.protocol import Protocol
from train.recipe import protocol_class
from train.recurrent import unpack_steps
from train.seeds import seed_everything
from train.systems.cmerc.losses import CONTEXT_VIEWS
from train.systems.cmerc.views import VIEWS, time_mean
from train.updates import Updates
from train.warm_up import WarmUp


class OneByOne(FromSamples):
    """Items become tensors one by one; to whole `arrays` where the authors' files hold those, else to the longest."""

    def __init__(self, arrays: Lengths | None = None):
        self.arrays = arrays

    def inputs(self, samples: Sequence[Sample], contract: Contract, lengths: Lengths | None = None) -> Inputs:
        wanted = self.arrays or lengths or longest([s.lengths(contract) for s in samples], contract)
        items = [{n: torch.from_numpy(a) for n, a in collate([s], contract).items()} for s in samples]
        found: Inputs = {}
        for spec in contract.inputs:
            own = [item[spec.name] for item in items]
            if not spec.batched:
                found[spec.name] = own[0]
                continue
            found[spec.name] = own[0].new_full(spec.shape(len(own), wanted), spec.padding or 0)
            for row, value in enumerate(own):
                found[spec.name][row][tuple(map(slice, value.shape[1:]))] = value[0]
        return found


class Loop:
    """One network in training as its authors train it."""

    def __init__(self, phase: Phase):
        """Starts from the weights that the phase has now."""
        self.phase, config = phase, phase.config
        settings, difficulty = phase.protocol.settings, phase.protocol.difficulty
        self.protocol: Protocol = protocol_class(config.system)(settings, difficulty)
        self.protocol.padding = OneByOne(self.arrays())
        self.model = copy.deepcopy(phase.model)
        unpack_steps(self.model)
        self.model = in_their_form(self.model)
        self.module = self.protocol.prepare(self.model, phase.samples, torch.device("cpu"))
        ours = self.protocol.updates(self.model, config)
        groups = [{n: g[n] for n in ("params", "lr", "weight_decay")} for g in ours.optimizer.param_groups]
        kind = torch.optim.Adam if config.optimizer == "adam" else type(ours.optimizer)
        self.updates = Updates(kind(groups), ours.accumulation, ours.clip_value)
        self.warm_up: WarmUp | None = None
        if config.warm_up is not None:
            batches = len(self.protocol.batches(phase.samples, config.batch, self.model.config))
            steps = ours.accumulation.planned(config.epochs * batches)
            self.warm_up = WarmUp(self.updates.optimizer, steps, config.warm_up)

    def epoch(self, number: int) -> float:
        """Trains one epoch; returns the mean of the losses."""
        phase, config = self.phase, self.phase.config
        seed_everything(config.seed_of(number))
        chosen = self.protocol.choose(phase.samples, number)
        self.begin(number)
        if self.warm_up is not None:
            self.warm_up.at(number * phase.steps_per_epoch)
        self.model.train()
        losses = []
        for index, samples in enumerate(self.protocol.batches(chosen, config.batch, self.model.config)):
            batch = self.protocol.vary(self.collate(samples))
            self.updates.before(index)
            total = self.step(batch)["total"]
            total.backward()
            if config.clip is not None and self.updates.applies(index):
                nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
            stepped = self.updates.after(index)
            if self.warm_up is not None:
                self.warm_up.next(stepped)
            losses.append(total.item())
        return sum(losses) / len(losses)

    def arrays(self) -> Lengths | None:
        """The lengths that every item is padded to; None pads to the longest of a batch."""
        return None

    def begin(self, number: int) -> None:
        """What is done before an epoch."""
        self.protocol.begin_epoch(self.model, number)

    def collate(self, samples: Sequence[Sample]) -> Any:
        """A batch."""
        return self.protocol.collate(samples, self.phase.contract)

    def step(self, batch: Any) -> Mapping[str, Tensor]:
        """Its losses."""
        return self.protocol.step(self.module, batch)


class Cmerc(Loop):
    """Three copies of the weights for the degraded views, and a forward for each of the five."""

    def begin(self, number: int) -> None:
        self.frozen: list[Any] = [copy.deepcopy(self.model).eval() for _ in range(1 + len(CONTEXT_VIEWS))]

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        features, log_prob = self.module(**batch.inputs)
        views = {n: batch.rows(v) for n, v in self._views(batch).items()}
        assert hasattr(self.protocol, "losses")
        return self.protocol.losses(batch.rows(log_prob), batch.rows(features), views, batch.labels)

    @torch.no_grad()
    def _views(self, batch: Batch) -> dict[str, Tensor]:
        lengths, semantics = batch.inputs["lengths"], self.protocol.settings.semantics
        found = {}
        for name, (modality, context) in VIEWS.items():
            frozen = self.frozen[(*CONTEXT_VIEWS, name).index(name) + 1 if name in CONTEXT_VIEWS else 0]
            inputs = dict(batch.inputs)
            if modality:
                inputs[modality] = time_mean(inputs[modality], lengths, semantics)
            features = frozen.features(**inputs, semantics=semantics, context=context)
            found[name] = frozen.classify(features, lengths)
        return found


class FacialMmt(Loop):
    """Whole arrays of dialogues, sound and faces."""

    def arrays(self) -> Lengths | None:
        config: Any = self.phase.model.config
        found: Lengths = config.longest
        return found


LOOPS: dict[str, type[Loop]] = {"cmerc": Cmerc, "facialmmt": FacialMmt}
"""Of the systems whose loop does more than take batches."""


def loop_of(phase: Phase) -> Loop:
    """The authors' loop on what a phase trains."""
    return LOOPS.get(phase.config.system, Loop)(phase)
